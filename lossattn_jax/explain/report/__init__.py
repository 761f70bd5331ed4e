"""The report on a checkpoint: an offline HTML page, and its pictures.

`page` is the page's content and its HTML, `pictures` and `summary` what it shows, `write` its folder.
"""
