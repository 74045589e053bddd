"""Checkpoints that are named by an address: downloaded once, checked against a SHA-256, and kept in torch's cache."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import torch
from mmengine.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3 import BaseHTTPResponse

from ...errors import IgniteError
from ...files import atomic_file, printable, sha256, writing
from ...packaged import did_you_mean
from ...preparation.client import Client, Interrupted
from ...untrusted import check_decoded_size, max_decoded_bytes, plain_name
from ..compatibility import mmengine_home
from ..distributed import is_main_process

REMEDY = 'download the file yourself and give its path'
TRIES = 4
"""Failures after which a download stops: seven seconds of waiting."""
CHUNK = 1 << 18
_NAMED = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
"""The convention of torch.hub and OpenMMLab: a name ends with the first digits of the SHA-256, 'mit_b0-7e0fe6dd.pth'."""
_STATED = re.compile(r'sha256=([0-9a-f]{64})')
_TABLES: dict[str, Callable[[], dict]] = {
    'torchvision': get_torchvision_models,
    'modelzoo': get_torchvision_models,
    'open-mmlab': get_external_models,
    'openmmlab': get_external_models,
    'mmcls': get_mmcls_models,
}
"""Schemes whose names mmengine resolves to addresses."""


def local_file(source: str | Path, remedy: str = REMEDY) -> Path:
    """Return the file that a checkpoint setting names; download it if it is an address.

    Args:
        source: a path; ``http(s)://...``; or ``torchvision://``, ``modelzoo://``, ``open-mmlab://``, ``openmmlab://`` or
            ``mmcls://`` and a name from mmengine's tables of addresses. An address or name may end with ``#sha256=HEX``.
        remedy: ends the sentence if the file cannot be had.

    Raises:
        IgniteError: the scheme or name is not known, or see :func:`fetch`. That a path exists is not checked.

    Example:
        >>> local_file('open-mmlab://resnet50_v1c')
        PosixPath('.../hub/checkpoints/resnet50_v1c-2cccc1ad.pth')
    """
    scheme, separator, name = str(source).partition('://')
    if not separator:
        return Path(source).expanduser()
    scheme = scheme.lower()
    if scheme in ('http', 'https'):
        return fetch(str(source), remedy)
    if scheme not in _TABLES:
        known = ', '.join(f'{known}://' for known in ('https', 'http', *_TABLES))
        raise IgniteError(
            f'{printable(source)} has the scheme {scheme}://, from which checkpoints are not read; a path or one of {known} '
            f'was expected: {remedy}.'
        )
    return _from_table(scheme, name, remedy)


def _from_table(scheme: str, name: str, remedy: str) -> Path:
    name, hash_sign, fragment = name.partition('#')
    try:
        table = _TABLES[scheme]()
    except ImportError as error:
        raise IgniteError(f'{scheme}://{name} requires a package ({error}): install it, or {remedy}.') from error
    if scheme in ('open-mmlab', 'openmmlab'):
        name = get_deprecated_model_names().get(name, name)
    address = table.get(name)
    if not isinstance(address, str):
        hint = did_you_mean(name, list(table))
        raise IgniteError(f"{scheme}://{name} is not in mmengine's table of {len(table)} models{hint}")
    if not address.startswith(('http://', 'https://')):  # a file that the user's own table names
        return Path(mmengine_home()) / address
    return fetch(address + hash_sign + fragment, remedy)


def fetch(url: str, remedy: str = REMEDY, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Download a file to torch's cache unless it is there, check its SHA-256, and return its path.

    The expected SHA-256 is the fragment ``#sha256=HEX`` of the address, else its first digits with which the name ends
    (``NAME-0123abcd.pth``). A file in the cache is checked again; a damaged one is downloaded again. The file appears only
    when it is complete and checked. In a distributed run every process that does not find the file downloads it.

    Args:
        url: http(s) address.
        remedy: ends the sentence if the file cannot be downloaded.
        sleep: waits between tries, in seconds.

    Raises:
        IgniteError: no SHA-256 is stated or it is wrong, the file is larger than
            :func:`mmseg_ignite.untrusted.max_decoded_bytes`, or the download fails.

    Example:
        >>> fetch('https://download.openmmlab.com/.../mit_b0_20220624-7e0fe6dd.pth')
        PosixPath('.../hub/checkpoints/mit_b0_20220624-7e0fe6dd.pth')
    """
    address, _, fragment = url.partition('#')
    stated = _stated(url, fragment)
    name = _file_name(address)
    named = found[1] if (found := _NAMED.search(name)) else ''
    expected = stated or named
    if stated and not (
        named and stated.startswith(named)
    ):  # files of the same name must not share a place in the cache
        name = f'{Path(name).stem}-{stated[:8]}{Path(name).suffix}'
    path = Path(torch.hub.get_dir()) / 'checkpoints' / name
    with contextlib.suppress(OSError):  # not there, or not readable
        if expected and path.is_file() and sha256(path).startswith(expected):
            return path
    with writing(path, f'free disk space, correct the permissions or set TORCH_HOME, or {remedy}'):
        with atomic_file(path) as partial:
            with partial.open('wb') as stream:
                _download(address, stream, remedy, sleep)
            _check(url, sha256(partial), expected, bool(stated))
    return path


def _stated(url: str, fragment: str) -> str:
    """Return the SHA-256 in the fragment of an address in lower case; '' without a fragment."""
    if not fragment:
        return ''
    found = _STATED.fullmatch(fragment.lower())
    if found is None:
        raise IgniteError(
            f'{printable(url)} ends with #{printable(fragment)}; #sha256= and 64 hex digits were expected.'
        )
    return found[1]


def _file_name(address: str) -> str:
    try:
        name = unquote(urlsplit(address).path).rsplit('/', 1)[-1]
    except ValueError as error:
        raise IgniteError(f'{printable(address)} is not an http(s) address ({error}): correct it.') from error
    return plain_name(name, address)


def _check(url: str, found: str, expected: str, stated: bool) -> None:
    """Raise IgniteError unless a downloaded file has the expected SHA-256."""
    if expected and found.startswith(expected):
        return
    address = printable(url.partition('#')[0])
    if not expected:
        raise IgniteError(
            f'{address} states no checksum (NAME-0123abcd.pth), so the download cannot be checked; its SHA-256 is {found}: '
            f'if you trust the server, append #sha256={found} to the address.'
        )
    if stated:
        raise IgniteError(
            f'{address} sent a file with the SHA-256 {found}, but the address states {expected}: the file was altered; do '
            'not use it, unless its publisher states the new SHA-256.'
        )
    raise IgniteError(
        f'{address} sent a file with the SHA-256 {found}, but its name states {expected}: do not use it, unless the digits '
        f'in the name are a date; then append #sha256={found} to the address.'
    )


def _download(address: str, stream: BinaryIO, remedy: str, sleep: Callable[[float], None]) -> None:
    """Write the file at an address; continue after lost connections, up to TRIES in a row without a new byte."""
    console = Console(stderr=True)
    client = Client(sleep, lambda text: console.print(text, soft_wrap=True, markup=False))
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    title = TextColumn('{task.description}', markup=False)
    failures = most = 0
    with Progress(title, *columns, console=console, disable=not is_main_process()) as progress:
        bar = progress.add_task(f'Downloading {_file_name(address)}', total=None)
        while True:
            try:
                with _answer(client, address, stream.tell(), remedy) as response:
                    return _receive(response, stream, address, lambda n, m: progress.update(bar, completed=n, total=m))
            except Interrupted as error:
                if error.restart:
                    stream.truncate(0)
                    stream.seek(0)
                failures = 1 if stream.tell() > most else failures + 1
                most = max(most, stream.tell())
                if failures >= TRIES:
                    raise IgniteError(
                        f'{printable(address)} cannot be downloaded ({error}): check the network, or {remedy}.'
                    ) from error
                sleep(max(2.0 ** (failures - 1), error.wait))


@contextlib.contextmanager
def _answer(client: Client, address: str, start: int, remedy: str) -> Iterator[BaseHTTPResponse]:
    """Request the bytes from ``start`` on; add the remedy to the sentence if the server refuses."""
    with contextlib.ExitStack() as stack:
        try:
            response = stack.enter_context(client.get(address, start))
        except IgniteError as error:
            raise IgniteError(f'{str(error).rstrip(".")}, or {remedy}.') from error
        yield response


def _receive(
    response: BaseHTTPResponse, stream: BinaryIO, address: str, on_progress: Callable[[int, int], None]
) -> None:
    """Append a response to ``stream``, within the limit of :func:`mmseg_ignite.untrusted.max_decoded_bytes`."""
    size, plain = stream.tell(), response.headers['Content-Encoding'] == 'identity'
    span, length = response.headers.get('Content-Range', ''), response.headers.get('Content-Length', '')
    if response.status != 206:  # the whole file, also where the server ignores Range
        stream.truncate(0)
        size = stream.seek(0)
    elif not plain or not span.startswith(f'bytes {size}-'):
        raise Interrupted(
            f'the server sends the range {span[:80]!r} instead of the bytes from {size:,} on', restart=True
        )
    limit, total = max_decoded_bytes(), size + int(length) if plain and length.isdecimal() else None
    check_decoded_size(address, total or 0, f'{total or 0:,} bytes')
    while chunk := response.read1(CHUNK, decode_content=True):
        size += stream.write(chunk)
        if size > limit:
            check_decoded_size(address, size, f'more than {limit:,} bytes')
        on_progress(size, total)
    if total is not None and size < total:
        raise Interrupted(f'the connection ended after {size:,} of {total:,} bytes')
