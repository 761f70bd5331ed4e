"""Measures speed, memory and agreement against plain versions of the same work.

A module with a command (`python -m benchmarks.NAME --help`) is one measurement, which writes a JSON record
for `results/benchmarks/`; the others are its parts. `machine` says in every record where it was made. What is
killed, damaged or run for days belongs to `reliability/`.
"""
