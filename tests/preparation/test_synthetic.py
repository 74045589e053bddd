import csv
import json

import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import RAW_LABEL_MAP
from mmseg_ignite.preparation import write_synthetic_release
from mmseg_ignite.preparation.release import COLUMNS


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_same_seed_same_bytes_other_seed_other_images(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        write_synthetic_release(tmp_path / name, 3, 3, (64, 70), seed)
    a, b, c = (files(tmp_path / n) for n in 'abc')
    assert a == b
    assert a != c


def test_the_layout_is_that_of_the_release(release):
    rows = list(csv.DictReader((release / 'data_overview.csv').open()))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 12
    assert json.loads((release / 'he_label_map.json').read_text()) == RAW_LABEL_MAP
    assert {r['split'] for r in rows} == {'train', 'test'}
    train, test = ({r['patient_id'] for r in rows if r['split'] == s} for s in ('train', 'test'))
    assert not train & test
    for row in rows:
        name = row['name']
        image, context = (Image.open(release / 'images/he' / f'{name}{s}.png') for s in ('', '_with_context'))
        mask = np.array(Image.open(release / 'annotations/he' / f'{name}.png'))
        around = np.array(Image.open(release / 'annotations/he' / f'{name}_with_context.png'))
        assert f'({image.height}, {image.width})' == row['shape'] and mask.shape == image.size[::-1]
        assert context.size == around.shape[::-1]
        inner = around[64:-64, 64:-64]
        np.testing.assert_array_equal((256 - mask.astype(int)) % 256, inner)
        assert around.sum() == inner.sum()
        assert np.array_equal(np.array(context)[64:-64, 64:-64], np.array(image))


@pytest.mark.parametrize(
    'arguments',
    [dict(rois=0), dict(patients=9, rois=4), dict(size=(10, 10)), dict(encoding='?'), dict(seed=-1)],
)
def test_invalid_arguments_are_refused(tmp_path, arguments):
    with pytest.raises(IgniteError, match='release'):
        write_synthetic_release(tmp_path / 'r', **arguments)


@pytest.mark.parametrize('change', ['added', 'changed', 'marker'])
def test_a_release_that_was_changed_is_not_replaced(tmp_path, change):
    """A user may have added images."""
    out = tmp_path / 'release'
    for _ in range(2):
        write_synthetic_release(out, 2, 2, (64, 70))
    path = {'added': out / 'images' / 'he' / 'mine.png', 'changed': next((out / 'annotations' / 'he').iterdir())}.get(
        change
    )
    (path or out / 'synthetic.json').write_bytes(b'mine')
    before = files(out)
    with pytest.raises(IgniteError, match='changed'):
        write_synthetic_release(out, 2, 2, (64, 70))
    assert files(out) == before


def test_a_release_is_not_written_into_another(release):
    with pytest.raises(IgniteError, match='stays as it is'):
        write_synthetic_release(release / 'new', 2, 2, (64, 70))
