"""Every fault of a release ends in one sentence that names the file, and publishes nothing."""

import gzip
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import decode_mask
from mmseg_ignite.preparation import prepare
from mmseg_ignite.preparation.release import read_mask, read_overview

NAME = 'patient1_he_roi1'


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


DAMAGE = {
    'no csv': (lambda r: (r / 'data_overview.csv').unlink(), 'data_overview.csv'),
    'no column': (lambda r: edit(r / 'data_overview.csv', 'patient_id', 'patient'), 'patient_id'),
    'no H&E row': (lambda r: edit(r / 'data_overview.csv', 'he_tissue_segmentation', 'pdl1'), 'no row'),
    'no patient': (lambda r: edit(r / 'data_overview.csv', ',1,1,synthetic', ',,1,synthetic'), 'patient_id'),
    'bad shape': (lambda r: edit(r / 'data_overview.csv', '"(', '"(x'), 'shape'),
    'path as name': (lambda r: edit(r / 'data_overview.csv', f'{NAME},he', f'../{NAME},he'), 'plain file name'),
    'name twice': (lambda r: edit(r / 'data_overview.csv', 'patient2_he_roi1,he', f'{NAME},he'), 'more than once'),
    'no label map': (lambda r: (r / 'he_label_map.json').unlink(), 'he_label_map.json'),
    'other label map': (lambda r: edit(r / 'he_label_map.json', 'Stroma', 'Soma'), 'he_label_map.json'),
    'image missing': (lambda r: (r / f'images/he/{NAME}.png').unlink(), f'images/he/{NAME}.png'),
    'mask missing': (lambda r: (r / f'annotations/he/{NAME}.png').unlink(), f'annotations/he/{NAME}.png'),
    'empty image': (lambda r: (r / f'images/he/{NAME}.png').write_bytes(b''), 'cannot be decoded'),
    'no image': (lambda r: (r / f'images/he/{NAME}.png').write_text('hello'), 'cannot be decoded'),
    'empty mask': (lambda r: (r / f'annotations/he/{NAME}.png').write_bytes(b''), 'cannot be decoded'),
    'gray image': (lambda r: save(r / f'images/he/{NAME}.png', np.zeros((80, 80), np.uint8)), 'RGB'),
    '16 bit image': (lambda r: save(r / f'images/he/{NAME}.png', np.zeros((80, 80, 3), np.uint16)), 'RGB'),
    'RGB mask': (lambda r: save(r / f'annotations/he/{NAME}.png', np.zeros((80, 80, 3), np.uint8)), 'one channel'),
    'size': (lambda r: save(r / f'annotations/he/{NAME}.png', np.full((9, 9), 3, np.uint8)), 'same size'),
    'values': (lambda r: save(r / f'annotations/he/{NAME}.png', np.full((80, 80), 99, np.uint8)), 'class ids'),
}


def save(path, array):
    cv2.imwrite(str(path), array)


@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_release(own_release, tmp_path, kind):
    damage, words = DAMAGE[kind]
    damage(own_release)
    with pytest.raises(IgniteError, match=words):
        prepare(own_release, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert [p.name for p in tmp_path.iterdir()] == ['release']


def test_a_failed_run_keeps_the_prepared_set(own_release, tmp_path):
    index = prepare(own_release, tmp_path / 'out')
    (own_release / f'images/he/{NAME}.png').unlink()
    with pytest.raises(IgniteError):
        prepare(own_release, tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'index.json').read_text()) == index


@pytest.mark.parametrize('where', ['nowhere', ''])
def test_wrong_or_empty_release(tmp_path, where):
    with pytest.raises(IgniteError, match=str(tmp_path)):
        read_overview(tmp_path / where)


def test_gzipped_overview_with_bom_reads_the_same(own_release):
    plain = read_overview(own_release)
    path = own_release / 'data_overview.csv'
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf' + path.read_bytes()))
    assert read_overview(own_release) == plain


def test_palette_masks_give_indices_not_luminance(tmp_path):
    indices = np.random.default_rng().integers(0, 17, (30, 30)).astype(np.uint8)
    image = Image.fromarray(indices, 'P')
    image.putpalette(np.random.default_rng().integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(tmp_path / 'm.png')
    np.testing.assert_array_equal(read_mask(tmp_path / 'm.png').labels, decode_mask(indices).labels)
