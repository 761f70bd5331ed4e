"""Subjects of `campaign`: commands, and what is done to them.

A world is a folder in which a command runs, with all that it reads and writes; paths are relative to it.
"""

import dataclasses

from reliability.subject_inputs import Command

KILL, DAMAGE, FULL, PAIR, READ_ONLY = "kill", "damage", "full", "pair", "read-only"
KINDS = (KILL, DAMAGE, FULL, PAIR, READ_ONLY)

# Whose appearance anywhere in a world is a moment for a kill.
TEMPORARIES = (".part", "incomplete.", "orbax-checkpoint-tmp", ".tmp")


@dataclasses.dataclass(frozen=True)
class Unseen:
    """Damage that is not tried: invisible, or a user's choice.

    Attributes:
      pattern: of files in the world.
      ways: of `damage.WAYS`.
      reason: for the record.
    """

    pattern: str
    ways: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Subject:
    """A command, called in one way.

    Attributes:
      command: what the table calls it.
      arguments: of Python.
      inputs: of `INPUTS`, that its world begins with.
      case: what is special about it; "" for nothing.
      before: arguments of commands that ran in that world before.
      after: arguments of commands that read what it has made, where that is no result by itself.
      without: patterns of files that its world does not have.
      results: patterns of the files that are its results.
      workdirs: runs whose last checkpoints are results.
      stores: of Zarr whose arrays are results.
      damages: patterns of what is damaged, in a world in which the command has ended.
      fresh: whether it is damaged in a world in which the command has not run.
      aims: patterns of files whose appearance is a moment for a kill, besides `TEMPORARIES`.
      once: whether the command refuses to run again where it has run to its end.
      prints: whether what it prints is a result.
      logs: files that tell what happened: after damage to them, they may be others than before.
      unseen: damage that is not tried.
      kinds: of trials.
      weight: of its damage; what takes longer has less.
    """

    command: str
    arguments: Command
    inputs: tuple[str, ...] = ()
    case: str = ""
    before: tuple[Command, ...] = ()
    after: tuple[Command, ...] = ()
    without: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    workdirs: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    damages: tuple[str, ...] = ()
    fresh: bool = False
    aims: tuple[str, ...] = ()
    once: bool = False
    prints: bool = False
    logs: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    kinds: tuple[str, ...] = KINDS
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The command and the case."""
        return f"{self.command} ({self.case})" if self.case else self.command
