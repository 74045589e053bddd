"""Small files that would decode to gigabytes are refused before they are decoded, by the limit MMSEG_IGNITE_MAX_GB.

The limit is set to 50 MB here, so that a bomb is made in a moment. Each is opened in a forked process, whose highest
memory is compared with its memory at the start.
"""

import ctypes
import gzip
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmseg_ignite.datasets.prepared import open_array
from mmseg_ignite.datasets.transforms import LoadIGNITERegion
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation.label_files import read_labels
from mmseg_ignite.images.jpeg import check_jpeg
from mmseg_ignite.images.png import DamagedPicture
from mmseg_ignite.images.reading import read_image
from mmseg_ignite.preparation import audit, pictures
from mmseg_ignite.preparation.archives import extract_he_members
from mmseg_ignite.preparation.label_map import LABEL_MAP, read_label_map
from mmseg_ignite.preparation.release import OVERVIEW, read_overview

LIMIT = 50  # MB
SIDE = 5000  # px; 75 MB as RGB
pytestmark = pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='memory is measured as Linux does')


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setenv('MMSEG_IGNITE_MAX_GB', f'{LIMIT / 1000}')


def memory(name):
    """Return a figure of this process's memory in MB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f'{name}:'))


def opened(call, *arguments):
    """Call a function in a forked process: return its error, '' if it worked, and the additional memory in MB."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            ctypes.CDLL(None).malloc_trim(0)  # memory that other tests freed and the process kept would not be counted
            Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
            before = memory('VmRSS')
            try:
                call(*arguments)
                text = ''
            except (IgniteError, DamagedPicture) as error:
                text = str(error)
            os.write(writer, json.dumps([text, memory('VmHWM') - before]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def refused(call, *arguments, word='MMSEG_IGNITE_MAX_GB', most=30):
    text, memory = opened(call, *arguments)
    assert word in text, text
    assert memory < most, f'{memory:.0f} MB'
    return text


def deflated(size):
    """Return zeros, compressed piece by piece."""
    packer = zlib.compressobj(1)
    return b''.join([*(packer.compress(bytes(1 << 20)) for _ in range(-(-size // (1 << 20)))), packer.flush()])


def png(colour=2, side=SIDE, channels=3, bits=8):
    """Return a PNG of zeros that any decoder accepts."""

    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    header = struct.pack('>IIBBBBB', side, side, bits, colour, 0, 0, 0)
    palette = chunk(b'PLTE', bytes(768)) if colour == 3 else b''
    pixels = chunk(b'IDAT', deflated(side * (side * channels * bits // 8 + 1)))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + palette + pixels + chunk(b'IEND', b'')


def encoded(format, side, **options):
    stream = io.BytesIO()
    Image.new('RGB', (side, side)).save(stream, format, **options)
    return stream.getvalue()


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def test_the_measure_sees_memory_and_small_images_are_read(tmp_path):
    assert opened(lambda: np.ones(20_000_000))[1] > 150
    path = written(tmp_path, 'a.png', png(side=500))
    assert opened(read_image, path)[0] == opened(pictures.read_image, path.read_bytes(), print)[0] == ''


def test_a_png_is_refused_by_its_header(tmp_path, monkeypatch):
    path = written(tmp_path, 'bomb.png', content := png())
    assert len(content) < 2e6
    assert f'{SIDE} x {SIDE} px' in refused(read_image, path)
    refused(pictures.read_image, content, lambda *_: None)
    refused(LoadIGNITERegion().transform, dict(img_path=str(path)))
    for colour, channels, bits in ((6, 4, 8), (2, 3, 16), (4, 2, 16)):
        refused(pictures.read_image, png(colour, SIDE, channels, bits), lambda *_: None)
    for colour in (0, 3):
        grey = png(colour, 8000, 1)
        refused(pictures.read_mask, grey, lambda *_: None)
        refused(read_labels, written(tmp_path, 'labels.png', grey))
    monkeypatch.setenv('MMSEG_IGNITE_MAX_GB', '1')
    text, memory = opened(read_image, path)
    assert text == '' and memory < 2.5 * 4 * SIDE**2 / 1e6, f'{memory:.0f} MB'


@pytest.mark.parametrize(
    'format, options',
    [('JPEG', {}), ('TIFF', {'compression': 'tiff_adobe_deflate'}), ('BMP', {}), ('JPEG', {'progressive': True})],
)
def test_other_formats_are_refused_by_their_headers(format, options, tmp_path):
    path = written(tmp_path, f'bomb.{format.lower()}', encoded(format, SIDE, **options))
    refused(read_image, path)
    refused(LoadIGNITERegion().transform, dict(img_path=str(path)))
    if format == 'JPEG':
        refused(pictures.read_image, path.read_bytes(), lambda *_: None)
        refused(check_jpeg, path.read_bytes())


def test_a_tile_larger_than_its_tiff_is_refused(tmp_path):
    entries = {256: 64, 257: 64, 258: 8, 259: 8, 262: 2, 277: 3, 322: 2**15, 323: 2**15, 324: 400, 325: 10}
    fields = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in entries.items())
    content = b'II*\0\x08\0\0\0' + struct.pack('<H', len(entries)) + fields + bytes(4)
    refused(read_image, written(tmp_path, 'tile.tif', content.ljust(400, b'\0') + deflated(2**20)), word='tiles')


def test_a_large_file_of_the_release_is_not_read(own_release):
    path = next((own_release / 'images' / 'he').glob('*roi1.png'))
    with path.open('ab') as stream:
        stream.truncate(LIMIT * 4_000_000)  # a sparse file: it takes no room on the disk
    text, memory = opened(lambda: audit(own_release, own_release.parent / 'out', console=Console(file=io.StringIO())))
    assert 'MMSEG_IGNITE_MAX_GB' in text and memory < 60, (text, memory)


@pytest.mark.parametrize('name', [LABEL_MAP, OVERVIEW])
def test_compressed_tables_stop_at_the_limit(own_release, name):
    with gzip.open(own_release / name, 'wb', compresslevel=1) as stream:
        for _ in range(200):
            stream.write(bytes(1 << 20))
    assert (own_release / name).stat().st_size < 2e6
    text, memory = opened(lambda: stop(read_overview(own_release).findings))
    assert 'MMSEG_IGNITE_MAX_GB' in text and memory < 30, (text, memory)


def stop(findings):
    raise IgniteError(' '.join(map(str, findings)))


@pytest.mark.parametrize(
    'text, word', [(',\n' * 500_000, 'rows'), (',' * 500_000 + '\n', 'columns'), ('a' * 100_000, 'field')]
)
def test_tables_that_grow_in_memory_are_refused(own_release, text, word):
    head = (own_release / OVERVIEW).read_text()
    (own_release / OVERVIEW).write_text(text + head if word == 'columns' else head + text)
    text, memory = opened(lambda: stop(read_overview(own_release).findings))
    assert 'overview' in text and word in text and memory < 200, (text[:300], memory)


def test_a_label_map_of_many_names_is_refused(own_release):
    (own_release / LABEL_MAP).write_text(json.dumps({f'{number}': 1 for number in range(50_000)}))
    text, memory = opened(lambda: stop(read_label_map(own_release)[1]))
    assert LABEL_MAP in text and len(text) < 1000 and memory < 60, (text[:300], memory)


def test_a_member_of_an_archive_is_refused_by_its_size(tmp_path):
    archive = tmp_path / 'images.zip'
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as content:
        with content.open('he/bomb.png', 'w') as member:
            for _ in range(100):
                member.write(bytes(1 << 20))
    assert archive.stat().st_size < 1e6
    refused(lambda: extract_he_members(archive, tmp_path / 'release', 'images', 1 << 40, lambda _: None))
    assert not (tmp_path / 'release').exists()


def test_a_header_of_an_array_is_not_allocated(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999, 3), }".ljust(117) + b'\n'
    path = written(tmp_path, 'a.npy', b'\x93NUMPY\1\0' + struct.pack('<H', 118) + header)
    refused(open_array, path, word='header states')
