"""Errors that are the user's to mend."""


class UserError(Exception):
    """A mistake the user can mend: its text is one sentence saying what is wrong and what is allowed.

    Commands print that sentence and exit with code 2, without a traceback. Any other exception is a bug
    of ours and keeps its traceback.
    """


class UnknownName(UserError, ValueError):
    """A name that no part has.

    In a command it is a user's mistake, in Python an argument of a wrong value.
    """


class Incomplete(UserError):
    """A part of what was asked for could not be done, and the rest was: the text says which.

    Commands print it as they do any `UserError`, and exit with code 3.
    """


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or is not as it was saved. Training goes on from an older one."""


class UntrustedCode(UserError):
    """What is stored names code by reference that nobody has said to trust; nothing was imported.

    Attributes:
      key: what names the code, such as "model.pooling".
      value: the reference.
    """

    def __init__(self, place: object, key: str, value: str):
        super().__init__(
            f"{key} in {place} is {value!r}, which is code that this command would import and run; say "
            "--trust_code if you trust it"
        )
        self.key, self.value = key, value
