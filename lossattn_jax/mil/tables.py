"""Writes a table of runs of `python -m lossattn_jax.mil` beside the paper's.

python -m lossattn_jax.mil.tables --runs=runs/networks,runs/classical --table=t.md --record=t.json
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.mil import paper_table, report

RUNS = flags.DEFINE_list(
    "runs", None, "workdirs, or JSON files that this command wrote", required=True
)
TABLE = flags.DEFINE_string("table", None, "Markdown file to write", required=True)
RECORD = flags.DEFINE_string("record", None, "JSON file to write", required=True)


def main() -> None:
    """Runs the command; its flags are above."""
    summaries = paper_table.write(RUNS.value, TABLE.value, RECORD.value)
    print(paper_table.markdown(summaries), end="")
    report.refuse_nonfinite(summaries)


if __name__ == "__main__":
    command.run(main)
