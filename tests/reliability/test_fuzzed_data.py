"""Randomly damaged inputs: each is read as before, or refused with one sentence; never another exception."""

import contextlib
import csv
import gzip
import io
import json
import random
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmseg_ignite.datasets import IGNITEDataset
from mmseg_ignite.datasets.crop_stream import CropStream
from mmseg_ignite.datasets.prepared import array_paths, read_index, select
from mmseg_ignite.datasets.transforms import LoadIGNITERegion
from mmseg_ignite.datasets.verification import check_sample, roi_faults
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.images.png import DamagedPicture
from mmseg_ignite.images.reading import read_image
from mmseg_ignite.labels import RAW_LABEL_MAP, MaskError
from mmseg_ignite.preparation import audit, download, pictures, prepare
from mmseg_ignite.preparation.archives import Unpacker, extract_he_members
from mmseg_ignite.preparation.client import RemoteFile
from mmseg_ignite.preparation.label_map import LABEL_MAP, read_label_map
from mmseg_ignite.preparation.release import OVERVIEW, compare_rows, leaks, read_overview

sys.path.insert(0, str(Path(__file__).parent))
from mutations import mutated_bytes, mutated_json  # noqa: E402

ROUNDS = 25
"""Of each kind of input."""


def survives(call, *arguments):
    """Call a function; return whether it worked, False if it ended in an IgniteError, which must be printable."""
    try:
        call(*arguments)
        return True
    except IgniteError as error:
        text = str(error)
        assert text.endswith('.') and len(text) < 3000 and text.isprintable(), text
        text.encode()
        return False


@pytest.fixture
def small(prepared, tmp_path):
    """A prepared data set that a test may change."""
    return shutil.copytree(prepared, tmp_path / 'ignite')


def use(root):
    """Open a prepared data set in the ways that training, tests and verification do."""
    index = read_index(root)
    for protocol, part in (('patient-8-1-1', 'train'), ('official', 'test')):
        entries = select(index, protocol, part, str(root))
        dataset = IGNITEDataset(str(root), part, protocol, pipeline=[LoadIGNITERegion()])
        dataset[0]['gt_seg_map'].max()
        stream = CropStream(root, entries, crop_size=(32, 32), um_per_px=(0.4, 0.6), use_context=True)
        for n in range(3):
            stream.read(0, n)
        check_sample(root, entries, True, 0.2)


def test_a_damaged_index_is_read_or_refused(small):
    path = small / 'index.json'
    content, rng = json.loads(path.read_text()), random.Random(1)
    content['rois'] = content['rois'][:6]
    names = {roi['name'] for roi in content['rois']}
    parts = {part: [n for n in members if n in names] for part, members in content['splits']['patient-8-1-1'].items()}
    content['splits'] = {'patient-8-1-1': parts, 'official': parts}
    outcomes = []
    for number in range(4 * ROUNDS):
        path.write_bytes(mutated_json(content, rng) if number % 4 else mutated_bytes(json.dumps(content).encode(), rng))
        outcomes.append(survives(use, small))
    assert not all(outcomes)


def test_damaged_arrays_are_read_or_refused(small):
    rng, outcomes = random.Random(2), []
    entry = select(read_index(small), 'patient-8-1-1', 'train', str(small))[0]
    for number in range(2 * ROUNDS):
        path = array_paths(small, entry['name'], True)[number % 5]
        before = path.read_bytes()
        path.write_bytes(mutated_bytes(before[:128], rng) + before[128:] if number % 3 else mutated_bytes(before, rng))
        outcomes.append(survives(use, small))
        assert roi_faults(small, entry), 'the checksum reveals every change'
        path.write_bytes(before)
    assert not all(outcomes) and not roi_faults(small, entry)


def read_tables(release):
    overview = read_overview(release)
    compare_rows(overview.names, overview.records)
    leaks(overview.records)
    return overview


@pytest.mark.parametrize('seed, compressed', [(3, False), (4, True)])
def test_damaged_tables_are_read_or_refused(own_release, seed, compressed):
    rng = random.Random(seed)
    labels, overview = own_release / LABEL_MAP, own_release / OVERVIEW
    tables = {labels: json.dumps(RAW_LABEL_MAP).encode(), overview: overview.read_bytes()}
    pack = (lambda content: gzip.compress(content, mtime=0)) if compressed else bytes
    for _ in range(ROUNDS):
        labels.write_bytes(pack(mutated_json(RAW_LABEL_MAP, rng)))
        overview.write_bytes(pack(changed_table(tables[overview], rng)))
        survives(read_tables, own_release)
        for path, content in tables.items():
            path.write_bytes(mutated_bytes(pack(content), rng))
        survives(read_tables, own_release)


def changed_table(content, rng):
    """Replace a field of a CSV table."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rng.choice(rows)
    values = (
        '',
        '-1',
        'nan',
        'inf',
        '1e999',
        str(2**62),
        '../evil',
        'x' * 5000,
        'x' * 200_000,
        'a\0b',
        '\r\n',
        '00' * 400,
    )
    row[rng.randrange(len(row))] = rng.choice(values)
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


def test_a_damaged_mapping_of_the_user_is_read_or_refused(own_release, tmp_path):
    rng, path = random.Random(5), tmp_path / 'mine.json'
    for _ in range(ROUNDS):
        path.write_bytes(mutated_json({'Stroma': 4, '20': 0, 'Liver': 15}, rng))
        survives(read_label_map, own_release, path)


def test_damaged_releases_end_in_an_audit(own_release, tmp_path):
    rng = random.Random(6)
    files = [*own_release.glob('*/he/*.png'), own_release / OVERVIEW, own_release / LABEL_MAP]
    for number in range(8):
        path = files[number % len(files)] if number % 2 else rng.choice(files[-2:])
        before = path.read_bytes()
        path.write_bytes(mutated_bytes(before, rng))
        survives(lambda: audit(own_release, tmp_path / 'out', console=Console(file=io.StringIO())))
        path.write_bytes(before)


def test_an_earlier_run_with_a_damaged_index_is_prepared_again(own_release, tmp_path):
    out, rng, console = tmp_path / 'out', random.Random(7), Console(file=io.StringIO())
    whole = prepare(own_release, out, console=console)
    for _ in range(8):
        (out / 'index.json').write_bytes(mutated_json(whole, rng))
        survives(lambda: prepare(own_release, out, console=console))
        assert not any(roi_faults(out, roi) for roi in read_index(out)['rois'])


def test_a_damaged_record_is_refused():
    links = {'self': 'https://localhost/file'}
    files = [dict(key=name, size=7, checksum=f'md5:{"0" * 32}', links=links) for name in download.NAMES]
    rng, outcomes = random.Random(10), []
    for number in range(2 * ROUNDS):
        content = (
            mutated_json({'files': files}, rng)
            if number % 3
            else mutated_bytes(json.dumps({'files': files}).encode(), rng)
        )
        outcomes.append(survives(download._read_record, Answer(content), 'https://localhost/record'))
    assert any(outcomes) and not all(outcomes)


class Answer:
    """A client to which every request is answered with the same content."""

    def __init__(self, content):
        self.content = content

    @contextlib.contextmanager
    def get(self, url):
        response = io.BytesIO(self.content)
        yield SimpleNamespace(read=lambda most, decode_content: response.read(most))


def encoded(format, **options):
    image = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)
    stream = io.BytesIO()
    mode = options.pop('mode', 'RGB')
    Image.fromarray(image).convert(mode).save(stream, format, **options)
    return stream.getvalue()


IMAGES = {
    'png': encoded('PNG', dpi=(50_800, 50_800)),
    'rgba.png': encoded('PNG', mode='RGBA'),
    'palette.png': encoded('PNG', mode='P'),
    'jpg': encoded('JPEG'),
    'progressive.jpg': encoded('JPEG', progressive=True),
    'tif': encoded('TIFF', compression='tiff_adobe_deflate', dpi=(50_800, 50_800)),
    'jpeg.tif': encoded('TIFF', compression='jpeg'),
    'bmp': encoded('BMP'),
}


@pytest.mark.parametrize('kind', IMAGES)
def test_damaged_images_are_read_or_refused(kind, tmp_path):
    rng, outcomes = random.Random(kind), []
    for _ in range(ROUNDS):
        (path := tmp_path / f'a.{kind}').write_bytes(content := mutated_bytes(IMAGES[kind], rng))
        outcomes.append(survives(read_image, path))
        for read in (pictures.read_image, pictures.read_mask):  # a release reports damage as a finding
            with contextlib.suppress(DamagedPicture, MaskError):
                read(content, lambda *_: None)
    assert not all(outcomes)


def test_damaged_archives_are_unpacked_or_refused(tmp_path):
    archive, rng = tmp_path / 'images.zip', random.Random(8)
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as content:
        for number in range(3):
            content.writestr(f'images/he/a{number}.png', IMAGES['png'] * 3)
    whole = archive.read_bytes()
    for number in range(ROUNDS):
        damaged = mutated_bytes(whole, rng) if number % 2 else whole[:-400] + mutated_bytes(whole[-400:], rng)
        archive.write_bytes(damaged)
        survives(extract_he_members, archive, tmp_path / f'release{number}', 'images', 1 << 20, lambda _: None)


def test_a_damaged_list_of_unpacked_archives_is_read_or_refused(tmp_path):
    members = {'patient1_he_roi1.png': 17, 'patient2_he_roi1.png': 19}
    content = {'archives': {'images.zip': {'size': 123, 'md5': '0' * 32, 'members': members}}}
    rng = random.Random(9)
    for _ in range(ROUNDS):
        (tmp_path / 'download.json').write_bytes(mutated_json(content, rng))
        survives(unpacked, tmp_path)


def unpacked(release):
    Unpacker(release).is_done(RemoteFile('images.zip', 123, '0' * 32, 'https://localhost/images.zip'), 'images')
