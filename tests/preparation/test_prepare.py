import csv

import numpy as np
from PIL import Image

from mmseg_ignite.preparation import prepare, read_index
from mmseg_ignite.preparation.store import image_path, label_path


def test_arrays_hold_the_pixels_of_the_release(release, prepared):
    index = read_index(prepared)
    rows = {r['name']: r for r in csv.DictReader((release / 'data_overview.csv').open())}
    assert {r['name'] for r in index['rois']} == set(rows)
    for roi in index['rois']:
        name = roi['name']
        image = np.array(Image.open(release / 'images' / 'he' / f'{name}.png'))
        raw = (256 - np.array(Image.open(release / 'annotations' / 'he' / f'{name}.png')).astype(int)) % 256
        labels = np.load(label_path(prepared, name))
        np.testing.assert_array_equal(np.load(image_path(prepared, name)), image)
        np.testing.assert_array_equal(labels, np.where(raw == 0, 255, raw - 1))
        assert roi['pixels'] == [int((raw == i + 1).sum()) for i in range(16)]
        assert sum(roi['pixels']) + roi['unannotated'] == raw.size
        assert roi['patient'] == rows[name]['patient_id'] and roi['scanner'] == rows[name]['scanner']
        assert abs(roi['um_per_px'] - 0.5) < 1e-3


def test_both_encodings_prepare_to_the_same_labels(tmp_path):
    from mmseg_ignite.preparation import write_synthetic_release

    for encoding in ('complement', 'direct'):
        write_synthetic_release(tmp_path / encoding, 4, 4, (72, 80), 1, encoding)
        prepare(tmp_path / encoding, tmp_path / f'{encoding}_out')
    for roi in read_index(tmp_path / 'direct_out')['rois']:
        first, second = (np.load(label_path(tmp_path / f'{e}_out', roi['name'])) for e in ('complement', 'direct'))
        np.testing.assert_array_equal(first, second)


def test_real_tissue_prepares_with_its_known_faults(real_release, tmp_path, capsys):
    index = prepare(real_release, tmp_path / 'real')
    assert len(index['rois']) == 54 and sum(r['stray'] for r in index['rois']) == 1
    assert {r['encoding'] for r in index['rois']} == {'complement'}
    official = index['splits']['official']
    assert len(official['test']) == sum(r['official_split'] == 'test' for r in index['rois'])
    assert 'stray' in capsys.readouterr().out
