"""Shortages of memory, disk or files, described in sentences."""

import errno
import os

# Errors of the system that are for the user to mend.
_SENTENCES = {
    # Before the next, whose words are in those of this one.
    errno.ENFILE: "the machine can open no more files; end other programs",
    errno.EMFILE: "this process may open no more files; raise the limit (ulimit -n)",
    errno.ENOMEM: "the machine has no more memory; end other programs",
    errno.ENOSPC: "no space is left on a disk; free some",
}


def describe(error: BaseException | None) -> str | None:
    """Describes the shortage that an exception comes from, or None.

    Libraries raise exceptions of their own of it, some with no more than the system's words.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        text = str(error)
        for lacks, sentence in _SENTENCES.items():
            if number == lacks or number is None and os.strerror(lacks) in text:
                where = getattr(error, "filename", None)
                return (
                    sentence
                    if where is None
                    else f"{where} cannot be opened or written: {sentence}"
                )
        error = error.__cause__ or error.__context__
    return None
