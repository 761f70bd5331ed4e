import pytest

from lossattn_jax.files import escaping


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("musk1", "musk1"),
        ("mi_net_ds", "mi_net_ds"),
        ("x|y", r"x\|y"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("a & b", "a &amp; b"),
        ("*bold* and `code`", r"\*bold\* and \`code\`"),
        ("[text](javascript:alert(1))", r"\[text\](javascript:alert(1))"),
        ("_a_", r"\_a\_"),
        ("a\n| b", r"a \| b"),
        ("back\\slash", r"back\\slash"),
        ("# title", r"\# title"),
        ("\x1b[31m", r"\\x1b\[31m"),
        (0.5, "0.5"),
    ],
)
def test_markdown_shows_text_as_it_is(text, expected):
    assert escaping.for_markdown(text) == expected


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "\t=1", "\rx", "＝1", "-inf", "-"],
)
def test_a_spreadsheet_runs_no_formula(text):
    assert escaping.for_spreadsheet(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["tumor", "a=b", "-1", "+1", "-1.5e-3", "-.5", "", "1", "'x", "bag -1"]
)
def test_numbers_and_other_text_stay(text):
    assert escaping.for_spreadsheet(text) == text
