"""What the campaigns make of wrong input: see `test_bad_input`."""

import pytest

from tests.support import bad_input


def of(name, *flags):
    return ("-m", f"reliability.{name}", *flags)


FUZZER = of("fuzzer", "--reader=csv")
RECORDING = (FUZZER, *map(of, ("campaign", "crash_campaign", "long_run")))
OUT = "--out={w}/new.json"
TABLE = of("campaign_table", "--file={w}/page.md")

CASES = [
    *((command, "out") for command in RECORDING),
    *(
        ((*command, "--out={w}/page.md/x.json"), "x.json cannot be written")
        for command in RECORDING
    ),
    *(((*command, "--out={w}"), "{w} is a folder, but must be a file") for command in RECORDING),
    (of("campaign", OUT, "--commands=trane"), "--commands has 'trane', but may have: train, eval"),
    (of("campaign", OUT, "--kinds=kil"), "--kinds has 'kil', but may have: kill, damage, full"),
    (of("campaign", OUT, "--share=1.5"), "share"),
    (of("crash_campaign", OUT, "--kills=-1"), "kills"),
    (of("long_run", OUT, "--epochs=2"), "epochs"),
    (of("fuzzer", OUT, "--reader=pdf"), "reader"),
    (of("fuzzer", OUT, "--reader=csv", "--minutes=0"), "minutes"),
    ((*TABLE, "--record={w}/absent.json"), "{w}/absent.json cannot be read"),
    ((*TABLE, "--record={w}/page.md"), "{w}/page.md cannot be read"),
    ((*TABLE, "--record={w}/whole.json"), "{w}/page.md has no lines"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    (folder / "page.md").write_text("no place for a table")
    (folder / "whole.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("arguments", "sentence"), CASES)
def test_wrong_input_is_refused(world, arguments, sentence):
    bad_input.refused(arguments, sentence, world)
