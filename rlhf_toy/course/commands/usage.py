"""How a command says that it was asked for something it cannot do."""


class UsageError(ValueError):
    """A mistake of the user's: reported as one line, without a traceback, with exit code 2.

    Commands raise it while they check their arguments, before they write anything.
    """
