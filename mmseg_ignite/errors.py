"""The error type for problems that a user can fix."""


class IgniteError(Exception):
    """One sentence for the user: the file, what was found, what was expected and what to do.

    The command-line tools print it without a traceback and exit with status 2.
    """
