"""Tiles of predicted slides and the page that shows them, without a browser."""

import hashlib
import json
import os
import re
import zlib
from base64 import b64decode, b64encode

import cv2
import numpy as np
import pytest

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.report.deep_zoom import TILE, read_deep_zoom, write_deep_zoom
from mmseg_ignite.report.slides_page import SlideEntry, write_slides_page

HOSTILE = '</script><img src=x onerror="window.hacked=1">\'{{ 7 * 7 }}'


class Source:
    """An array that counts how often each pixel is read, and knows the largest rectangle."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.reads, self.most_rows = np.zeros(array.shape[:2], np.uint8), 0

    def __getitem__(self, index):
        block = self.array[index]
        self.reads[index] += 1
        self.most_rows = max(self.most_rows, block.shape[0])
        return block


def random_image(rng, height, width):
    """Return a smooth picture, so that JPEG changes little, (H, W, 3) uint8."""
    rough = rng.integers(40, 220, (max(2, height // 60), max(2, width // 60), 3)).astype(np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def random_labels(rng, height, width):
    rough = rng.integers(0, len(CLASSES), (height // 9 + 1, width // 7 + 1)).astype(np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_NEAREST)


def read_level(folder, kind, level):
    """Return a level of the pyramid; missing label tiles are Background, missing slide tiles 0."""
    found = read_deep_zoom(folder)[kind]
    depth = len(found['levels']) - 1 - level
    height, width = (-(-side // 2**depth) for side in found['size'])
    rows, columns = -(-height // TILE), -(-width // TILE)
    bits = np.frombuffer(b64decode(found['levels'][level]), np.uint8)
    exists = np.unpackbits(bits)[: rows * columns].reshape(rows, columns).astype(bool)
    picture = np.zeros((height, width, 3) if kind == 'slide' else (height, width), np.uint8)
    files = set()
    for row, column in np.argwhere(exists):
        name = f'{column}_{row}' + ('.jpg' if kind == 'slide' else '.js')
        files.add(name)
        content = (folder / kind / str(level) / name).read_bytes()
        part = picture[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)]
        if kind == 'slide':
            part[:] = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        else:
            packed = re.fullmatch(rb'mmsegTile\("([A-Za-z0-9+/=]+)"\);\n', content)[1]
            part[:] = np.frombuffer(zlib.decompress(b64decode(packed)), np.uint8).reshape(part.shape)
    assert set(os.listdir(folder / kind / str(level))) == files
    return picture, exists


def halved(image):
    """Return means of 2 x 2 pixels, in float; an odd last row or column stands for two."""
    image = np.pad(image, [(0, n % 2) for n in image.shape[:2]] + [(0, 0)], mode='edge')
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


@pytest.mark.parametrize('large', [True, False])
def test_each_level_is_the_source_at_half_the_size(tmp_path, large):
    rng = np.random.default_rng()
    height, width = rng.integers(1030, 1700, 2) if large else rng.integers(1, 500, 2)
    image, labels = Source(random_image(rng, height, width)), Source(random_labels(rng, height, width))
    write_deep_zoom(tmp_path / 'a_tiles', image, labels, 0.5)
    found = read_deep_zoom(tmp_path / 'a_tiles')
    assert found['size'] == [height, width] and found['um_per_px'] == 0.5
    top = len(found['slide']['levels']) - 1
    assert top == (2 if large else 0)
    expected = image.array.astype(float)
    for level in range(top, -1, -1):
        picture, exists = read_level(tmp_path / 'a_tiles', 'slide', level)
        assert exists.all() and np.abs(picture - expected).mean() < 3 and np.abs(picture - expected).max() < 40
        ids, _ = read_level(tmp_path / 'a_tiles', 'labels', level)
        np.testing.assert_array_equal(ids, labels.array[:: 2 ** (top - level), :: 2 ** (top - level)])
        expected = halved(expected)
    for source in (image, labels):
        assert (source.reads == 1).all() and source.most_rows <= TILE


def test_glass_is_not_read_and_costs_no_fine_tiles(tmp_path):
    rng = np.random.default_rng()
    height, width = 2100, 2600
    image, labels = Source(random_image(rng, height, width)), np.zeros((height, width), np.uint8)
    tissue = np.zeros((height, width), bool)
    tissue[600:900, 1100:1700] = True
    labels[tissue] = 3
    glass = cv2.resize(image.array, (650, 525), interpolation=cv2.INTER_AREA)  # as coarse as level 1
    write_deep_zoom(tmp_path / 't', image, labels, None, lambda rows, columns: tissue[rows, columns].any(), glass)
    read = image.reads.astype(bool)
    assert read[tissue].all() and read.sum() <= 4 * TILE**2 and image.reads.max() == 1
    counts = [read_level(tmp_path / 't', 'slide', level)[1].sum() for level in range(4)]
    assert counts[0] == 1 and counts[1] == 4 and counts[2:] == [1, 2]
    picture, _ = read_level(tmp_path / 't', 'slide', 1)
    assert np.abs(picture.astype(float) - halved(halved(image.array.astype(float)))).mean() < 4
    assert [read_level(tmp_path / 't', 'labels', level)[1].sum() for level in range(4)] == [1, 1, 1, 2]


def test_without_tissue_there_is_one_white_tile(tmp_path):
    image = Source(np.zeros((1500, 900, 3), np.uint8))
    write_deep_zoom(tmp_path / 't', image, np.zeros((1500, 900), np.uint8), 1.0, lambda rows, columns: False)
    assert not image.reads.any() and (read_level(tmp_path / 't', 'slide', 0)[0] == 255).all()
    for kind, suffix in (('slide', 'jpg'), ('labels', 'js')):
        assert len(list((tmp_path / 't' / kind).rglob(f'*.{suffix}'))) == 1


def test_slide_may_be_coarser_than_its_labels(tmp_path):
    rng = np.random.default_rng()
    labels, image = random_labels(rng, 1201, 1100), random_image(rng, 1201, 1100)
    write_deep_zoom(tmp_path / 'a', image, labels, 0.5, max_um_per_px=1.0)
    write_deep_zoom(tmp_path / 'b', halved(image.astype(float)).astype(np.uint8), labels, 0.5, scale=2)
    for name in 'ab':
        found = read_deep_zoom(tmp_path / name)
        assert found['slide']['size'] == [601, 550] and found['slide']['scale'] == 2 and found['size'] == [1201, 1100]
        assert len(found['slide']['levels']) == len(os.listdir(tmp_path / name / 'slide')) == 2
        assert len(found['labels']['levels']) == 3
    a, b = (read_level(tmp_path / name, 'slide', 1)[0].astype(float) for name in 'ab')
    assert np.abs(a - b).mean() < 2


def test_tiles_are_whole_or_absent(tmp_path):
    rng = np.random.default_rng()
    image, labels = random_image(rng, 1200, 600), random_labels(rng, 1200, 600)
    write_deep_zoom(tmp_path / 't', image, labels, 0.5)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}

    class Truncated(Source):
        def __getitem__(self, index):
            if index[0].start >= TILE:
                raise OSError('truncated')
            return super().__getitem__(index)

    with pytest.raises(IgniteError, match='truncated'):
        write_deep_zoom(tmp_path / 't', Truncated(image), labels, 0.5)
    with pytest.raises(IgniteError, match='truncated'):
        write_deep_zoom(tmp_path / 'u', Truncated(image), labels, 0.5)
    with pytest.raises(IgniteError, match='do not fit'):
        write_deep_zoom(tmp_path / 't', image[:-9], labels, 0.5)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
    assert os.listdir(tmp_path) == ['t']
    write_deep_zoom(tmp_path / 't', image, labels, 0.5)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before  # deterministic
    (tmp_path / 't' / 'mine.txt').write_text('')
    with pytest.raises(IgniteError, match='other files'):
        write_deep_zoom(tmp_path / 't', image, labels, 0.5)


def entry(out, name='slide', folder='t', **content):
    if not (out / folder).exists():
        write_deep_zoom(out / folder, np.zeros((9, 7, 3), np.uint8), np.ones((9, 7), np.uint8), 0.5)
    areas = [
        {'class': 'Stroma', 'mm2': 1.5, 'share': 0.25},
        {'class': 'Background', 'mm2': None, 'share': float('nan')},
    ]
    return SlideEntry(name, out / folder, **(dict(areas=areas) | content))


def page_data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_page_holds_the_data_of_each_slide(tmp_path):
    ratios = [{'name': 'stroma_share', 'value': 0.5, 'formula': 'a / b'}, {'name': 'other', 'value': None}]
    entries = [entry(tmp_path, 'b', notes=['note']), entry(tmp_path, 'a', 'sub/ü #%', ratios=ratios)]
    path = write_slides_page(tmp_path, entries)
    content = path.read_bytes()
    b, a = page_data(content.decode())['slides']
    assert (b['name'], b['folder'], b['notes'], b['size']) == ('b', 't', ['note'], [9, 7])
    assert b['areas'] == [dict(id=3, mm2=1.5, share=0.25), dict(id=0, mm2=None, share=None)]
    assert a['folder'] == 'sub/%C3%BC%20%23%25'
    assert a['ratios'] == [
        dict(name='stroma_share', value=0.5, formula='a / b'),
        dict(name='other', value=None, formula=None),
    ]
    write_slides_page(tmp_path, entries)
    assert path.read_bytes() == content
    assert 'No slide has been predicted' in write_slides_page(tmp_path, []).read_text()


def test_page_is_self_contained_and_has_the_licence(tmp_path):
    page = write_slides_page(tmp_path, [entry(tmp_path)]).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r'<script>(.*?)</script>', page, re.S)
    for script in scripts:
        assert b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(scripts) == 3 and 'http' not in policy and "default-src 'none'" in policy
    assert 'Copyright (C) 2009 CodePlex Foundation' in scripts[1] and 'openseadragon 6.' in scripts[1]
    assert 'sourceMappingURL' not in page
    html = re.sub(r'<script>.*?</script>', '', page, flags=re.S)
    assert re.findall(r'(?:src|href)="(.*?)"', html) == ['data:,', '#stage', 't/slide/0/0_0.jpg']


def test_hostile_names_are_escaped(tmp_path):
    name = os.fsdecode(b'\xff') + HOSTILE
    ratio = {'name': HOSTILE, 'value': 1, 'formula': HOSTILE}
    page = write_slides_page(tmp_path, [entry(tmp_path, name, ratios=[ratio], notes=[HOSTILE])]).read_text()
    assert '<img src=x' not in page and page.count('</script>') == 4
    (slide,) = page_data(page)['slides']
    assert slide['name'] == '\\xff' + HOSTILE and slide['notes'] == [HOSTILE] and slide['ratios'][0]['name'] == HOSTILE


def test_errors_are_one_sentence(tmp_path):
    good = entry(tmp_path / 'out')
    (tmp_path / 'out' / 'empty').mkdir()
    with pytest.raises(IgniteError, match='predict the slide again'):
        write_slides_page(tmp_path / 'out', [good._replace(tiles=tmp_path / 'out' / 'empty')])
    with pytest.raises(IgniteError, match='not inside'):
        write_slides_page(tmp_path / 'out', [entry(tmp_path)])
    with pytest.raises(IgniteError, match='Strma'):
        write_slides_page(tmp_path / 'out', [good._replace(areas=[{'class': 'Strma', 'mm2': 1, 'share': 1}])])
    with pytest.raises(IgniteError, match='language'):
        write_slides_page(tmp_path / 'out', [good], language='fr')
    assert not (tmp_path / 'out' / 'slides.html').exists()
    (tmp_path / 'out' / 'slides.html').write_text('mine')
    with pytest.raises(IgniteError, match='did not write it'):
        write_slides_page(tmp_path / 'out', [good])
    assert (tmp_path / 'out' / 'slides.html').read_text() == 'mine'
