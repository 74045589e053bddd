"""Reading files that others may have written: limits on decoded sizes, names that stay in their folder, text, JSON, arrays.

Every reader of a file that a user can hand over goes through this module, so that a damaged or hostile file ends in one
sentence: it neither fills the memory nor names a path outside its folder.
"""

import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import IgniteError
from .files import printable

MAX_GB_VARIABLE = 'MMSEG_IGNITE_MAX_GB'
DEFAULT_MAX_GB = 1.0
MAX_TEXT_BYTES = 1 << 28
"""Largest text file that is read, 256 MiB; the index of 100,000 ROIs has half of that."""
MAX_NAME = 200
"""Longest name in a file, bytes in UTF-8: file systems allow 255, and suffixes are appended."""
MAX_TEXT = 4096
"""Longest single text in a file, characters, e.g. a path."""
MAX_ARRAYS = 64
"""Most arrays in one .npz file."""
_BLOCK = 1 << 20
"""Bytes that are decompressed at once."""


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
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # a pipe would never end
            raise OSError(None, 'it is no regular file')
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
        raise IgniteError(
            f'{printable(path)} lists {name[:80]!r}, which is not a file in {printable(folder)}: put it there.'
        )
    return Path(folder) / relative


class Form(NamedTuple):
    """What a value of a JSON file must be, see :func:`check_form`.

    Example:
        >>> Form(lambda value: value == 1, 'format 1')
    """

    valid: Callable[[object], bool]
    expected: str  # with an article or a plural, for 'X was expected'


def is_text(value: object, longest: int = MAX_TEXT) -> bool:
    """Return whether a value is text of at most ``longest`` characters that can be part of a file name."""
    if not isinstance(value, str) or len(value) > longest or '\0' in value:
        return False
    try:
        value.encode('utf-8', 'surrogateescape')  # bytes of file names that are not UTF-8 are lone surrogates
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether a value is a finite number in ``low`` .. ``high``; True and False are not."""
    return type(value) in (int, float) and low <= value <= high and abs(value) < 2**1023


TEXT = Form(is_text, f'text of at most {MAX_TEXT} characters')
NAME = Form(
    lambda value: is_text(value) and value != '' and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value),
    'a name without control characters',
)
COUNT = Form(lambda value: type(value) is int and 0 <= value <= 2**53, 'a number from 0 to 2 ** 53')

_KINDS = {dict: 'an object', list: 'a list'}


def optional(form: Form) -> Form:
    """Return a form that also accepts null."""
    return Form(lambda value: value is None or form.valid(value), f'{form.expected} or null')


def check_form(
    value: object, form: object, path: str | os.PathLike, remedy: str = 'check the file', at: str = ''
) -> None:
    """Check the content of a JSON file against its form.

    Args:
        form: a :class:`Form`; a list with the form of all items; or a dictionary of forms by key. A key that ends with '?'
            may be missing, and '*' stands for all keys. Keys that are not in the form are ignored.
        at: where ``value`` is in the file.

    Raises:
        IgniteError: the content has another form; ``remedy`` ends the sentence.

    Example:
        >>> check_form({'format': 2}, {'format': Form(lambda value: value == 1, '1')}, 'fold.json', 'write it again')
        Traceback (most recent call last):
        mmseg_ignite.errors.IgniteError: fold.json has 2 as format; 1 was expected: write it again.
    """
    kind = _KINDS.get(type(form))
    if not (isinstance(value, type(form)) if kind else form.valid(value)):
        found = _KINDS.get(type(value)) or repr(value)[:80]  # the text of a deep list may exceed the recursion limit
        raise IgniteError(
            f'{printable(path)} has {found} as {at or "its content"}; {kind or form.expected} was expected: {remedy}.'
        )
    if isinstance(form, list):
        for number, item in enumerate(value):
            check_form(item, form[0], path, remedy, f'{at}[{number}]')
    elif kind:
        for key, inner in form.items():
            name = key.removesuffix('?')
            if name not in value and key != '*' and name == key:
                raise IgniteError(f'{printable(path)} lacks {f"{at}.{name}".lstrip(".")}: {remedy}.')
            for found in value if key == '*' else [name] if name in value else ():
                check_form(found, TEXT, path, remedy, f'a key of {at or "the file"}')
                check_form(value[found], inner, path, remedy, f'{at}.{repr(found[:80])[1:-1]}'.lstrip('.'))


def read_arrays(path: str | os.PathLike, remedy: str = 'check the file') -> dict[str, np.ndarray]:
    """Read the arrays of numbers and text of an .npz file, without pickle and at most :func:`max_decoded_bytes` of them.

    The sizes are those of the directory of the file. They are checked before anything is decompressed, and each header must
    agree with them.

    Raises:
        IgniteError: the file is missing, damaged or too large, has objects or an array twice; ``remedy`` ends the sentence.
    """
    try:
        check_decoded_size(path, os.path.getsize(path), 'compressed content')
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename.removesuffix('.npy') for entry in entries]
            if len(entries) > MAX_ARRAYS or len(set(names)) != len(entries):
                raise ValueError(f'it has {len(entries)} arrays, or one twice')
            check_decoded_size(path, sum(entry.file_size for entry in entries), f'{len(entries)} arrays')
            return {name: _read_array(archive, entry) for name, entry in zip(names, entries)}
    except IgniteError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many types on damaged files
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise IgniteError(
            f'{printable(path)} cannot be read as an .npz file ({reason.splitlines()[0][:120]}): {remedy}.'
        ) from error


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Read one array; raise ValueError, or an error of zipfile, zlib or NumPy, if it is not as stated."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile decodes others without a limit
        raise ValueError(f'{entry.filename[:80]!r} is compressed in another way than deflate')
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f'an array has version {version} of the .npy format')
        read_header = getattr(np.lib.format, f'read_array_header_{version[0]}_0')
        shape, is_fortran, dtype = read_header(stream)
        count = math.prod(shape)
        if dtype.kind not in 'iufU':
            raise ValueError(f'{entry.filename[:80]!r} has values of type {str(dtype)[:40]}')
        if min(shape, default=0) < 0 or not dtype.itemsize or count * dtype.itemsize != entry.file_size - stream.tell():
            raise ValueError(f'{entry.filename[:80]!r} has another size than its header states')
        array = np.empty(count, dtype)
        view, done = memoryview(array.view(np.uint8)), 0
        while done < len(view):
            if not (read := stream.readinto(view[done : done + _BLOCK])):
                raise EOFError(f'{entry.filename[:80]!r} is truncated')
            done += read
    if dtype.kind == 'U' and count and array.view(np.dtype('u4').newbyteorder(dtype.byteorder)).max() > 0x10FFFF:
        raise ValueError(f'{entry.filename[:80]!r} has values that are not text')
    return array.reshape(shape, order='F' if is_fortran else 'C')
