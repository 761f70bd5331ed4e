"""The report on a checkpoint: one HTML page that needs no network, and its pictures as files.

`page` is the page's content and its HTML, `pictures` and `summary` what it shows, `write` its folder.
"""
