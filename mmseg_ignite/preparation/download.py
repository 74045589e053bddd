"""Download the H&E part of the IGNITE release from Zenodo: resume, check, unpack."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3 import BaseHTTPResponse

from ..errors import IgniteError
from .archives import Unpacker
from .client import Client, Interrupted, RemoteFile
from .label_map import LABEL_MAP
from .release import OVERVIEW, disk_errors

RECORD = 'https://zenodo.org/api/records/15674785'
ARCHIVES = {'annotations.zip': 'annotations', 'images.zip': 'images'}  # and the folders for their H&E PNGs
NAMES = (OVERVIEW, LABEL_MAP, *ARCHIVES)
MAX_RECORD = 16 << 20
CHUNK = 1 << 18
Progressed = Callable[[int], None]  # called with the bytes that a file has now


def _read_record(client: Client, record: str) -> list[RemoteFile]:
    """Return the required files in the order of NAMES."""
    for failures in count(1):
        try:
            with client.get(record) as response:
                content = response.read(MAX_RECORD, decode_content=True)
            break
        except Interrupted as error:
            client.pause(error, failures, f'{record} cannot be read')
    try:
        entries = {entry['key']: entry for entry in json.loads(content)['files']}
        return [_remote_file(name, entries[name]) for name in NAMES]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IgniteError(
            f'{record} does not answer with the JSON of the IGNITE record ({type(error).__name__}: {str(error)[:300]}); the '
            f'key, size, md5 checksum and links.self of {", ".join(NAMES)} were expected: check that it is the API address '
            'of the record, and whether a proxy answers instead.'
        ) from error


def _remote_file(name: str, entry: dict) -> RemoteFile:
    size, checksum, url = entry['size'], entry['checksum'], entry['links']['self']
    valid = type(size) is int and 0 < size < 2**63 and re.fullmatch('md5:[0-9a-fA-F]{32}', checksum)
    valid = valid and isinstance(url, str) and not re.search(r'[\ud800-\udfff]', url)
    if not valid:
        raise ValueError(f'{name} has the size {size!r}, checksum {checksum!r} and address {url!r}')
    return RemoteFile(name, size, checksum[4:].lower(), url)


def _fetch(client: Client, file: RemoteFile, release: Path, on_progress: Progressed) -> None:
    """Download a file into the release, atomically; one with a wrong MD5 is downloaded a second time."""
    part, path = release / f'{file.name}.part', release / file.name
    for _ in range(2):
        _complete(client, file, part, on_progress)
        found = _md5(part)
        if found == file.md5:
            break
        part.unlink()
    else:
        raise IgniteError(
            f'{file.url} sent a wrong {file.name} twice (its MD5 is {found}, the record states {file.md5}): the network '
            'may alter it, or the record is being changed; try again later or from another network.'
        )
    if path.is_file() and file.name not in ARCHIVES:  # the user may have corrected it
        path.replace(release / f'{file.name}.bak')
        client.on_message(f'{path} differed from the file of the record; it is kept as {file.name}.bak.')
    part.replace(path)


def _complete(client: Client, file: RemoteFile, part: Path, on_progress: Progressed) -> None:
    """Append the missing bytes to the partial file ``part``."""
    with part.open('ab') as stream:
        size = most = stream.tell()
        failures = 0
        on_progress(size)
        while size < file.size:
            try:
                with client.get(file.url, size) as response:
                    _receive(response, stream, file, on_progress)
            except Interrupted as error:
                if error.restart:
                    stream.truncate(0)
                    stream.seek(0)
                # Only bytes beyond all earlier ones count as progress. Otherwise a server that cuts every answer at the
                # same position and cannot resume would be asked forever.
                failures = 1 if stream.tell() > most else failures + 1
                most = max(most, stream.tell())
                there = f'{stream.tell():,} of {file.size:,} bytes are in {part}'
                client.pause(error, failures, f'{file.name} cannot be fetched from {file.url} ({there})')
            size = stream.tell()


def _receive(response: BaseHTTPResponse, stream: BinaryIO, file: RemoteFile, on_progress: Progressed) -> None:
    """Append a response to ``stream``, up to the size that the record states."""
    size, span = stream.tell(), response.headers.get('Content-Range', '')
    if response.status != 206:  # the whole file, also where the server ignores Range
        stream.truncate(0)
        size = stream.seek(0)
    elif response.headers['Content-Encoding'] != 'identity':
        raise Interrupted('the server sends a range of the compressed file', restart=True)
    elif not span.startswith(f'bytes {size}-'):
        raise Interrupted(f'the server sends the range {span!r} instead of the bytes from {size:,} on', restart=True)
    while size < file.size:
        chunk = response.read1(min(CHUNK, file.size - size), decode_content=True)
        if not chunk:
            raise Interrupted(f'the connection ended after {size:,} of {file.size:,} bytes')
        size += stream.write(chunk)
        on_progress(size)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb') as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_disk(release: Path, fetched: list[RemoteFile], unpacked: list[RemoteFile]) -> None:
    """Raise IgniteError if the disk is too small; unpacking takes the size of an archive again, as PNGs hardly shrink."""
    there = [(file, release.glob(f'{file.name}.part')) for file in fetched]
    there += [(file, (release / ARCHIVES[file.name] / 'he').glob('*.png')) for file in unpacked]
    needed = sum(max(file.size - sum(p.stat().st_size for p in paths), 0) for file, paths in there)
    free = shutil.disk_usage(release).free
    if free < needed:
        raise IgniteError(
            f'{release} has {free:,} bytes free, but {needed:,} are needed to download and unpack the release: free disk '
            'space or choose a folder on another disk.'
        )


def download_release(
    release: str | Path,
    record: str = RECORD,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download the H&E part of the IGNITE release and unpack it.

    Writes data_overview.csv, he_label_map.json, images/he/*.png and annotations/he/*.png into ``release``, and the two
    archives, which may be deleted afterwards: download.json records that they are unpacked. Call it again to continue an
    interrupted download; for a complete release only the record is read. Other files in the folder are not touched. A
    table that differs from the one of the record is kept as NAME.bak.

    Args:
        release: folder, created if necessary.
        record: http(s) address of the Zenodo record's JSON.
        sleep: waits between tries, in seconds.

    Raises:
        IgniteError: the record is not the IGNITE record, a file cannot be fetched or has a wrong checksum, an archive is
            unsafe, or the disk is too small or cannot be written.

    Example:
        >>> download_release('data/release')
    """
    release, console = Path(release), console or Console()
    client = Client(sleep, lambda text: console.print(text, soft_wrap=True, markup=False))
    with disk_errors(release, 'free disk space or correct the permissions, and run the same command again to continue'):
        release.mkdir(parents=True, exist_ok=True)
        _download(release, client, record, console)


def _download(release: Path, client: Client, record: str, console: Console) -> None:
    unpacker = Unpacker(release)
    files = _read_record(client, record)
    todo = [f for f in files if f.name not in ARCHIVES or not unpacker.is_done(f, ARCHIVES[f.name])]
    paths = {file: release / file.name for file in todo}
    there = {f for f, path in paths.items() if path.is_file() and (path.stat().st_size, _md5(path)) == (f.size, f.md5)}
    fetched = [file for file in todo if file not in there]
    unpacked = [file for file in todo if file.name in ARCHIVES]
    _check_disk(release, fetched, unpacked)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn('{task.description}'), *columns, console=console) as progress:
        for file in fetched:
            bar = progress.add_task(file.name, total=file.size)
            _fetch(client, file, release, lambda n, bar=bar: progress.update(bar, completed=n))
        for file in unpacked:
            unpacker.unpack(file, ARCHIVES[file.name], progress)
    kept = ' and '.join(str(release / name) for name in ARCHIVES if (release / name).is_file())
    note = f'; {kept} may be deleted' if kept else ''
    console.print(f'{release} holds the H&E release{note}.', soft_wrap=True, markup=False, highlight=False)
