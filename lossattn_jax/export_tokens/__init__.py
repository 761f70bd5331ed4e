"""Tokens of images as bags: what a run's backbone makes of them, for the commands on bags.

`token_bags` writes them. A network for bags belongs in `models`, and reading bags in `data.bags`.
"""
