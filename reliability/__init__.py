"""Tries what must not break: kills, damage, full disks, long runs.

A module with a command (`python -m reliability.NAME --help`) is one campaign, which writes a JSON record for
`results/reliability/`; the others are its parts. `in_process` and `processes`, which run this package's
commands from Python, serve the tests as well. What is timed, or compared with another framework, belongs to
`benchmarks/`, whose `machine` says for both where a record was made.
"""
