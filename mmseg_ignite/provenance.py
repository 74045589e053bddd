"""Where a result comes from: versions, command, and checksums of files."""

import datetime
import hashlib
import shlex
import sys
from pathlib import Path

from .errors import IgniteError
from .files import sha256
from .version import __version__


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits; raise IgniteError if it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise IgniteError(f'{path} cannot be read ({error.strerror or error}): check the file.') from error


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, 64 hex digits."""
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()


def provenance(**known: object) -> dict:
    """Return ``version``, ``date`` (ISO 8601, UTC), ``command`` as typed, and the entries of ``known`` that are not None."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    known = {key: value for key, value in known.items() if value is not None}
    return dict(version=__version__, date=date, command=shlex.join(sys.argv), **known)
