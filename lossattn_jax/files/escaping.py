"""Text of users, escaped for Markdown and for spreadsheets."""

import re

# In Markdown as GitHub has it; an underscore within a word means nothing there.
_MARKS = re.compile(r"[\\`*|\[\]]|(?<![^\W_])_|_(?![^\W_])|^[#+~-]")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What makes a cell a formula, also in the wide forms that spreadsheets of East Asia take.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def for_markdown(text: object) -> str:
    """Escapes text for one line or cell of Markdown."""
    words = " ".join(str(text).split())
    plain = "".join(_HTML.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in words)
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", plain)


def for_spreadsheet(text: object) -> str:
    """Puts an apostrophe before text that a spreadsheet would run.

    Numbers stay numbers, also negative ones. (OWASP, "CSV Injection".)
    """
    text = str(text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
