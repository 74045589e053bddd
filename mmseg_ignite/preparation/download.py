"""Fetching the H&E part of the IGNITE release from Zenodo: resumable, checked, unpacked."""

import hashlib
import http.client
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..errors import IgniteError
from ..files import write_json
from .archives import extract_he_members, he_members
from .client import Body, Client, Interrupted, check_url
from .label_map import LABEL_MAP
from .release import OVERVIEW

RECORD = 'https://zenodo.org/api/records/15674785'
ARCHIVES = {'annotations.zip': 'annotations', 'images.zip': 'images'}
"""The zip archives and the folders of the release that their H&E PNGs go to."""
NAMES = (OVERVIEW, LABEL_MAP, *ARCHIVES)
STATE = 'download.json'
"""Says which archives are unpacked: {'archives': {name: {'size', 'md5', 'members': {PNG name: bytes}}}}."""
MAX_RECORD = 16 << 20
CHUNK = 1 << 18


class _WrongContent(Exception):
    """All bytes are there, and they are not those of the record."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of the record: size in bytes, MD5 as lower-case hex."""

    name: str
    size: int
    md5: str
    url: str


class _Part:
    """The bytes of a file that are there, in an open file, and their MD5."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.size, self.digest = stream, 0, hashlib.md5(usedforsecurity=False)
        stream.seek(0)
        while chunk := stream.read(CHUNK):
            self.digest.update(chunk)
            self.size += len(chunk)

    def append(self, chunk: bytes) -> None:
        self.stream.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def clear(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()
        self.size, self.digest = 0, hashlib.md5(usedforsecurity=False)


def _fetch_record(client: Client, record: str) -> bytes:
    failures = 0
    while True:
        try:
            with client.open(record) as response:
                return Body(response, record).read_all(MAX_RECORD)
        except Interrupted as error:
            failures += 1
            client.pause(error, failures, f'{record} cannot be read')


def _read_record(client: Client, record: str) -> list[RemoteFile]:
    """The four files that are needed, in the order of NAMES, from the record's JSON."""
    check_url(record)
    content = _fetch_record(client, record)
    try:
        entries = {entry['key']: entry for entry in json.loads(content)['files']}
        missing = [name for name in NAMES if name not in entries]
        files = [_remote_file(name, entries[name]) for name in NAMES if name in entries]
    except json.JSONDecodeError as error:
        raise IgniteError(
            f'{record} does not answer with JSON ({error}): check the address, or a proxy that answers.'
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IgniteError(
            f'{record} answers JSON of another shape ({type(error).__name__}: {error}); files with key, size, md5 '
            'checksum and links.self were expected: check that it is the API address of a Zenodo record.'
        ) from error
    if missing:
        raise IgniteError(
            f'{record} lists no {", ".join(missing)}; {", ".join(NAMES)} were expected: it is not the IGNITE record.'
        )
    for file in files:
        check_url(file.url)
    return files


def _remote_file(name: str, entry: dict) -> RemoteFile:
    size, checksum, url = entry['size'], entry['checksum'], entry['links']['self']
    if type(size) is not int or size <= 0:
        raise ValueError(f'{name} has the size {size!r}')
    if not re.fullmatch('md5:[0-9a-fA-F]{32}', checksum):
        raise ValueError(f'{name} has the checksum {checksum!r}')
    if not isinstance(url, str):
        raise ValueError(f'{name} has the address {url!r}')
    return RemoteFile(name, size, checksum[4:].lower(), url)


def _receive(response: http.client.HTTPResponse, part: _Part, file: RemoteFile, show: Callable[[int], None]) -> None:
    """Append an answer to the part, up to the size in the record; the MD5 tells whether those bytes are right."""
    body = Body(response, file.url)
    if response.status == 206 and body.inflater is not None:  # a range of the compressed file
        raise Interrupted('the server compresses, so the download cannot be resumed', restart=True)
    if part.size and response.status != 206:
        part.clear()  # the server ignores Range and sends the whole file
    elif part.size:
        span = response.headers['Content-Range'] or ''
        if not span.startswith(f'bytes {part.size}-'):
            raise Interrupted(f'bytes from {part.size:,} on were asked for, {span!r} came', restart=True)
    while part.size < file.size:
        chunk = body.read(min(CHUNK, file.size - part.size))
        if not chunk:
            raise Interrupted(f'the connection ended after {part.size:,} of {file.size:,} bytes')
        part.append(chunk)
        show(part.size)


def _transfer(client: Client, file: RemoteFile, path: Path, show: Callable[[int], None]) -> None:
    """Complete the partial file at ``path`` and check its MD5; the bytes that are there are kept."""
    with path.open('a+b') as stream:
        part = _Part(stream)
        failures, most = 0, part.size
        show(part.size)
        while part.size < file.size:
            try:
                with client.open(file.url, part.size) as response:
                    _receive(response, part, file, show)
            except Interrupted as error:
                # Only bytes beyond all earlier ones count as progress: a server that cuts every answer at the
                # same place and cannot resume would be asked for ever.
                failures = 1 if part.size > most else failures + 1
                most = max(most, part.size)
                if error.restart:
                    part.clear()
                there = f'{part.size:,} of {file.size:,} bytes are in {path}'
                client.pause(error, failures, f'{file.name} cannot be fetched from {file.url} ({there})')
        if part.digest.hexdigest() != file.md5:
            raise _WrongContent(f'its MD5 is {part.digest.hexdigest()}, the record says {file.md5}')


def _fetch(client: Client, file: RemoteFile, release: Path, show: Callable[[int], None]) -> None:
    """Put a file of the record at its place, whole and checked; a wrong one is fetched anew once."""
    path = release / f'{file.name}.part'
    for last in (False, True):
        try:
            _transfer(client, file, path, show)
        except _WrongContent as error:
            path.unlink()
            if last:
                raise IgniteError(
                    f'{file.url} sends another {file.name} than expected, twice ({error}): something between here and '
                    'the server alters it, or the record is being changed; try again later or from another network.'
                ) from error
        else:
            old = release / file.name
            if old.is_file() and file.name not in ARCHIVES:  # somebody may have corrected it by hand
                old.replace(release / f'{file.name}.bak')
                client.say(f'{old} was not that of the record; it is kept as {file.name}.bak.')
            path.replace(old)
            return


def _is_whole(path: Path, file: RemoteFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open('rb') as stream:
        return _Part(stream).digest.hexdigest() == file.md5


def _read_state(release: Path) -> dict:
    path = release / STATE
    try:
        state = json.loads(path.read_text(encoding='utf-8'))
        for entry in state['archives'].values():
            entry['size'], entry['md5'], entry['members'].items()
    except FileNotFoundError:
        return {'archives': {}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IgniteError(
            f'{path} is not what the download writes ({type(error).__name__}: {error}); the list of unpacked archives '
            'was expected: move it away and run again.'
        ) from error
    return state


def _is_unpacked(file: RemoteFile, release: Path, state: dict) -> bool:
    entry = state['archives'].get(file.name)
    if entry is None or (entry['size'], entry['md5']) != (file.size, file.md5):
        return False
    paths = {release / ARCHIVES[file.name] / 'he' / name: size for name, size in entry['members'].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _size_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


def _check_disk(release: Path, fetched: list[RemoteFile], unpacked: list[RemoteFile]) -> None:
    """PNGs do not shrink in a zip: an archive needs its size once more, beside itself, when it is unpacked."""
    needed = sum(max(file.size - _size_of([release / f'{file.name}.part']), 0) for file in fetched)
    for file in unpacked:
        there = _size_of((release / ARCHIVES[file.name] / 'he').glob('*.png'))
        needed += max(file.size - there, 0)
    free = shutil.disk_usage(release).free
    if free < needed:
        raise IgniteError(
            f'{release} has {free:,} bytes free, {needed:,} are needed for the download and its unpacking: make room '
            'or choose a folder on another disk.'
        )


def _unpack(file: RemoteFile, release: Path, state: dict, progress: Progress) -> None:
    archive, task = release / file.name, ARCHIVES[file.name]
    # Masks may be packed well; anything beyond this is not an archive of PNGs.
    limit = max(4 * file.size, 1 << 30)
    members = {name: info.file_size for name, info in he_members(archive, limit).items()}
    bar = progress.add_task(f'unpacking {file.name}', total=sum(members.values()))
    extract_he_members(archive, release, task, limit, lambda n: progress.advance(bar, n))
    state['archives'][file.name] = {'size': file.size, 'md5': file.md5, 'members': members}
    write_json(release / STATE, state)


def download_release(
    release: str | Path,
    record: str = RECORD,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch the H&E task of the IGNITE release and unpack it.

    Leaves data_overview.csv, he_label_map.json, images/he/*.png and annotations/he/*.png in ``release``, beside the
    two archives, which may then be deleted: download.json remembers that they are unpacked. A call that was
    interrupted is continued by the next; on a complete release only the record is read. Other files in the folder
    are left alone; a file of one of the release's own names is replaced if its content differs, tables after a copy as
    NAME.bak.

    Args:
        release: folder, made if it is absent.
        record: address of the Zenodo record's JSON, http(s).
        console: for the progress bars.
        sleep: waits between tries, in seconds.

    Raises:
        IgniteError: the record is not that of IGNITE, a file cannot be fetched or is not the one the record
            promises, an archive is unsafe, or the disk is too small or cannot be written.
    """
    release, console = Path(release), console or Console()
    try:
        release.mkdir(parents=True, exist_ok=True)
        _download(
            release, Client(sleep, lambda text: console.print(text, soft_wrap=True, markup=False)), record, console
        )
    except OSError as error:
        raise IgniteError(
            f'{error.filename or release} cannot be written or read ({error.strerror or error}): make room or correct the '
            'permissions and run the same command again, it goes on where this one stopped.'
        ) from error


def _download(release: Path, client: Client, record: str, console: Console) -> None:
    state = _read_state(release)
    files = _read_record(client, record)
    todo = [file for file in files if file.name not in ARCHIVES or not _is_unpacked(file, release, state)]
    fetched = [file for file in todo if not _is_whole(release / file.name, file)]
    unpacked = [file for file in todo if file.name in ARCHIVES]
    _check_disk(release, fetched, unpacked)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn('{task.description}'), *columns, console=console) as progress:
        for file in fetched:
            bar = progress.add_task(file.name, total=file.size)
            _fetch(client, file, release, lambda n, bar=bar: progress.update(bar, completed=n))
        for file in unpacked:
            _unpack(file, release, state, progress)
    kept = ' and '.join(str(release / name) for name in ARCHIVES if (release / name).is_file())
    note = f'; {kept} may be deleted' if kept else ''
    console.print(f'{release} holds the H&E release{note}.', soft_wrap=True, markup=False, highlight=False)
