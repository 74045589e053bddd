"""Random damage to data sets: prepared ones, releases, downloads and single images."""

import contextlib
import csv
import gzip
import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from fuzz_cases import Changing, Damage, Kind, Sources, Use
from mutations import mutated_bytes, mutated_json
from PIL import Image
from rich.console import Console

from mmseg_ignite.datasets import IGNITEDataset
from mmseg_ignite.datasets.crop_stream import CropStream
from mmseg_ignite.datasets.prepared import array_paths, read_index, select
from mmseg_ignite.datasets.transforms import LoadIGNITERegion
from mmseg_ignite.datasets.verification import check_sample, roi_faults
from mmseg_ignite.images.png import DamagedPicture
from mmseg_ignite.images.reading import read_image
from mmseg_ignite.labels import RAW_LABEL_MAP, MaskError
from mmseg_ignite.preparation import audit, download, pictures, prepare
from mmseg_ignite.preparation.archives import Unpacker, extract_he_members
from mmseg_ignite.preparation.client import RemoteFile
from mmseg_ignite.preparation.label_map import LABEL_MAP, read_label_map
from mmseg_ignite.preparation.release import OVERVIEW, compare_rows, leaks, read_overview


def use_data(root: Path) -> None:
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


def index(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage index.json, of which half of the ROIs are left, so that more mutations meet a value that matters."""
    root = shutil.copytree(sources.prepared, folder / 'ignite')
    content = json.loads((root / 'index.json').read_text())
    content['rois'] = content['rois'][:6]
    names = {roi['name'] for roi in content['rois']}
    parts = {part: [n for n in members if n in names] for part, members in content['splits']['patient-8-1-1'].items()}
    content['splits'] = {'patient-8-1-1': parts, 'official': parts}

    def damage(rng: random.Random) -> Path:
        as_json = rng.random() < 0.75
        (root / 'index.json').write_bytes(
            mutated_json(content, rng) if as_json else mutated_bytes(json.dumps(content).encode(), rng)
        )
        return root / 'index.json'

    return damage, lambda: use_data(root)


def arrays(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage an array, most often its header; the checksum must reveal every change."""
    root, change = shutil.copytree(sources.prepared, folder / 'ignite'), Changing()
    entry = select(read_index(root), 'patient-8-1-1', 'train', str(root))[0]

    def damage(rng: random.Random) -> Path:
        in_header = rng.random() < 0.66
        path = change(
            rng.choice(array_paths(root, entry['name'], True)),
            lambda old: mutated_bytes(old[:128], rng) + old[128:] if in_header else mutated_bytes(old, rng),
        )
        assert roi_faults(root, entry), 'the checksum reveals every change'
        return path

    return damage, lambda: use_data(root)


def use_tables(release: Path) -> None:
    overview = read_overview(release)
    compare_rows(overview.names, overview.records)
    leaks(overview.records)


def label_map(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage the label map of a release, also a compressed one."""
    release = shutil.copytree(sources.small_release, folder / 'release')

    def damage(rng: random.Random) -> Path:
        pack = rng.choice((bytes, lambda content: gzip.compress(content, mtime=0)))
        as_json = rng.random() < 0.5
        content = pack(mutated_json(RAW_LABEL_MAP, rng) if as_json else json.dumps(RAW_LABEL_MAP).encode())
        (release / LABEL_MAP).write_bytes(content if as_json else mutated_bytes(content, rng))
        return release / LABEL_MAP

    return damage, lambda: use_tables(release)


def overview(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage the table of a release, also a compressed one."""
    release, change = shutil.copytree(sources.small_release, folder / 'release'), Changing()

    def damage(rng: random.Random) -> Path:
        pack = rng.choice((bytes, lambda content: gzip.compress(content, mtime=0)))
        as_table = rng.random() < 0.5
        return change(
            release / OVERVIEW,
            lambda old: pack(changed_table(old, rng)) if as_table else mutated_bytes(pack(old), rng),
        )

    return damage, lambda: use_tables(release)


FIELDS = (
    '', '-1', 'nan', 'inf', '1e999', str(2**62), '../evil', 'x' * 5000, 'x' * 200_000, 'a\0b', '\r\n', '00' * 400,
)  # fmt: skip


def changed_table(content: bytes, rng: random.Random) -> bytes:
    """Replace a field of a CSV table."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(FIELDS)
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def mapping(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage a mapping of labels that the user wrote."""
    path = folder / 'mine.json'
    content = {'Stroma': 4, '20': 0, 'Liver': 15}
    return lambda rng: written(path, mutated_json(content, rng)), lambda: read_label_map(sources.small_release, path)


def quiet() -> Console:
    return Console(file=io.StringIO())


def release(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage an image or a table of a release and audit it."""
    root, change = shutil.copytree(sources.small_release, folder / 'release'), Changing()
    files = [sorted(root.glob('*/he/*.png')), [root / OVERVIEW, root / LABEL_MAP]]

    def damage(rng: random.Random) -> Path:
        return change(rng.choice(rng.choice(files)), lambda old: mutated_bytes(old, rng))

    return damage, lambda: audit(root, folder / 'out', console=quiet())


def earlier_index(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage the index of an earlier run of the preparation, which then must be correct again."""
    out = shutil.copytree(sources.small_prepared, folder / 'ignite')
    content = json.loads((out / 'index.json').read_text())

    def use() -> None:
        prepare(sources.small_release, out, console=quiet())
        assert not any(roi_faults(out, roi) for roi in read_index(out)['rois'])

    return lambda rng: written(out / 'index.json', mutated_json(content, rng)), use


def record(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage the list of files that the server of the release sends."""
    links, path = {'self': 'https://localhost/file'}, folder / 'record.json'
    files = [dict(key=name, size=7, checksum=f'md5:{"0" * 32}', links=links) for name in download.NAMES]

    def damage(rng: random.Random) -> Path:
        as_json, content = rng.random() < 0.66, {'files': files}
        return written(
            path, mutated_json(content, rng) if as_json else mutated_bytes(json.dumps(content).encode(), rng)
        )

    return damage, lambda: download._read_record(Answer(path.read_bytes()), 'https://localhost/record')


class Answer:
    """A client to which every request is answered with the same content."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @contextlib.contextmanager
    def get(self, url: str):
        response = io.BytesIO(self.content)
        yield SimpleNamespace(read=lambda most, decode_content: response.read(most))


def encoded(format: str, mode: str = 'RGB', **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format, **options)
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


def image(suffix: str, sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage an image, and read it as an image to segment and as one of a release, which reports damage as a finding."""
    path = folder / f'a.{suffix}'

    def use() -> None:
        content = path.read_bytes()
        for read in (pictures.read_image, pictures.read_mask):
            with contextlib.suppress(DamagedPicture, MaskError):
                read(content, lambda *_: None)
        read_image(path)

    return lambda rng: written(path, mutated_bytes(IMAGES[suffix], rng)), use


def archive(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage a zip archive of the release, as often in its directory as elsewhere."""
    path, stream = folder / 'images.zip', io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as content:
        for number in range(3):
            content.writestr(f'images/he/a{number}.png', IMAGES['png'] * 3)
    whole = stream.getvalue()

    def damage(rng: random.Random) -> Path:
        anywhere = rng.random() < 0.5
        return written(path, mutated_bytes(whole, rng) if anywhere else whole[:-400] + mutated_bytes(whole[-400:], rng))

    def use() -> None:
        shutil.rmtree(folder / 'release', ignore_errors=True)
        extract_he_members(path, folder / 'release', 'images', 1 << 20, lambda _: None)

    return damage, use


def unpacked(sources: Sources, folder: Path) -> tuple[Damage, Use]:
    """Damage the list of the archives that were unpacked before."""
    members = {'patient1_he_roi1.png': 17, 'patient2_he_roi1.png': 19}
    content = {'archives': {'images.zip': {'size': 123, 'md5': '0' * 32, 'members': members}}}
    file = RemoteFile('images.zip', 123, '0' * 32, 'https://localhost/images.zip')
    return (
        lambda rng: written(folder / 'download.json', mutated_json(content, rng)),
        lambda: Unpacker(folder).is_done(file, 'images'),
    )


def _image_kind(suffix: str) -> Kind:
    return Kind(lambda sources, folder: image(suffix, sources, folder), 25, 0.01)


KINDS = {
    'index.json': Kind(index, 100, 0.3),
    'arrays': Kind(arrays, 50, 0.3),
    'label map': Kind(label_map, 50),
    'overview': Kind(overview, 50),
    'own label map': Kind(mapping, 25),
    'release': Kind(release, 8),
    'earlier index': Kind(earlier_index, 8),
    'record': Kind(record, 50, 0.3),
    **{f'image.{suffix}': _image_kind(suffix) for suffix in IMAGES},
    'archive': Kind(archive, 25),
    'unpacked archives': Kind(unpacked, 25),
}
