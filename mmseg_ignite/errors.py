"""The error for problems that a user can fix."""


class IgniteError(Exception):
    """One sentence for the user: the file, what was found, what was expected and what to do.

    The command-line tools print it without a traceback and exit with status 2.
    """


def require(valid: bool, name: str, value: object, expected: str) -> None:
    """Raise IgniteError unless ``value`` of the setting ``name`` is valid."""
    if not valid:
        raise IgniteError(f'{name} is {value!r}; {expected} was expected: correct it in the config.')
