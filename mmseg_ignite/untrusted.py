"""Reading files that others may have written: limits on decoded sizes, names that stay in their folder, text and JSON.

Every reader of a file that a user can hand over goes through this module, so that a damaged or hostile file ends in one
sentence: it neither fills the memory nor names a path outside its folder.
"""

import json
import os
from pathlib import Path

from .errors import IgniteError
from .files import printable

MAX_GB_VARIABLE = 'MMSEG_IGNITE_MAX_GB'
DEFAULT_MAX_GB = 1.0
MAX_TEXT_BYTES = 1 << 28
"""Largest text file that is read, 256 MiB; the index of 100,000 ROIs has half of that."""
MAX_NAME = 200
"""Longest name in a file, bytes in UTF-8: file systems allow 255, and suffixes are appended."""


def max_decoded_bytes() -> int:
    """Return the largest decoded size of one file in bytes: the environment variable MMSEG_IGNITE_MAX_GB, by default 1 GB.

    It is an environment variable, so that loader workers and the processes of a distributed run inherit it.

    Raises:
        IgniteError: the variable is not a number above 0.
    """
    text = os.environ.get(MAX_GB_VARIABLE, '')
    try:
        value = float(text) if text else DEFAULT_MAX_GB
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise IgniteError(f'{MAX_GB_VARIABLE} is {text!r}; a number of GB above 0 was expected: correct it.')
    return int(value * 1e9)


def check_decoded_size(path: str | os.PathLike, size: int, what: str) -> None:
    """Raise IgniteError if a file states that its content is larger than :func:`max_decoded_bytes`.

    Args:
        size: decoded size in bytes, as stated in the header; call this before decoding.
        what: what has this size, e.g. '30000 x 30000 px of 3 channels'.
    """
    if size > (limit := max_decoded_bytes()):
        raise IgniteError(
            f'{printable(path)} has {what}, {size / 1e9:.3g} GB when decoded; at most {limit / 1e9:g} GB were expected: if '
            f'you trust the file, raise the limit with {MAX_GB_VARIABLE}={max(1, -(-size // 10**9))}.'
        )


def read_text(path: str | os.PathLike, remedy: str = 'check the file') -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        IgniteError: it is missing, larger than 256 MiB or not UTF-8; ``remedy`` ends the sentence.
    """
    try:
        with open(path, 'rb') as stream:
            content = stream.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, 'strerror', None) or error
        raise IgniteError(f'{printable(path)} cannot be read ({reason}): {remedy}.') from error
    if len(content) > MAX_TEXT_BYTES:
        raise IgniteError(
            f'{printable(path)} is larger than {MAX_TEXT_BYTES >> 20} MiB; a text file was expected: {remedy}.'
        )
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise IgniteError(f'{printable(path)} is not UTF-8 (byte {error.start}): {remedy}.') from error


def parse_json(text: str, path: str | os.PathLike, remedy: str = 'check the file') -> object:
    """Parse JSON from a file; NaN, infinities and numbers beyond 1e308 are refused.

    Raises:
        IgniteError: it is not valid JSON, or nested too deeply; ``remedy`` ends the sentence.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f'{constant} is not a JSON number')

    def finite(number: str) -> float:
        if abs(value := float(number)) == float('inf'):
            raise ValueError(f'{number[:40]} is too large')
        return value

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except RecursionError as error:
        raise IgniteError(f'{printable(path)} is nested too deeply to be read as JSON: {remedy}.') from error
    except ValueError as error:  # also JSONDecodeError, and integers of more than 4,300 digits
        raise IgniteError(f'{printable(path)} is not valid JSON ({str(error)[:200]}): {remedy}.') from error


def read_json(path: str | os.PathLike, remedy: str = 'check the file') -> object:
    """Read a JSON file, see :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, remedy), path, remedy)


def plain_name(name: object, path: str | os.PathLike) -> str:
    """Return a name from a file if it can be the stem of a file in a folder.

    Raises:
        IgniteError: it is not text, empty, hidden, longer than 200 bytes, or has a path separator or a control character.

    Example:
        >>> plain_name('../evil', 'index.json')
        Traceback (most recent call last):
        mmseg_ignite.errors.IgniteError: index.json has the name '../evil'; a file name without folders was expected: ...
    """
    valid = (
        isinstance(name, str)
        and 0 < len(name.encode('utf-8', 'surrogatepass')) <= MAX_NAME
        and not name.startswith('.')
        and not any(character in '/\\' or ord(character) < 32 for character in name)
    )
    if not valid:
        raise IgniteError(
            f'{printable(path)} has the name {str(name)[:80]!r}; a file name without folders was expected: use the file only '
            'if you trust it, and correct the name.'
        )
    return name


def file_inside(folder: str | os.PathLike, name: object, path: str | os.PathLike) -> Path:
    """Return ``folder / name`` for a relative path from a file, if it is a file in the folder after following links.

    Args:
        path: the file that states the name, for the sentence.

    Raises:
        IgniteError: it is not text, absolute, missing, or leads out of the folder, also by a symbolic link.
    """
    try:
        relative = os.path.normpath(os.fspath(name)) if isinstance(name, str) and name else os.pardir
        real, root = os.path.realpath(Path(folder) / relative), os.path.realpath(folder)
        inside = not os.path.isabs(relative) and os.path.commonpath([real, root]) == root
        exists = inside and os.path.isfile(real)
    except (OSError, ValueError):  # a null byte, a name that is too long, another drive
        inside = exists = False
    if not inside:
        raise IgniteError(
            f'{printable(path)} lists {str(name)[:80]!r}; the path of a file inside {printable(folder)} was expected: move '
            'the file there and correct the list.'
        )
    if not exists:
        raise IgniteError(f'{printable(path)} lists {name}, which is not a file in {printable(folder)}: put it there.')
    return Path(folder) / relative
