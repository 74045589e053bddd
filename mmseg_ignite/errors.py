"""The one error type for what a user can get wrong."""


class IgniteError(Exception):
    """One sentence for a person: the file, what was found, what was expected, what to do.

    The command-line tools print it without a traceback and exit with status 2.
    """
