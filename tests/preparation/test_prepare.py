import csv
import json
import sys

import numpy as np
import pytest
from conftest import tool
from PIL import Image

from mmseg_ignite.apis import preparing
from mmseg_ignite.datasets.prepared import image_path, label_path, points_path
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import IGNORE
from mmseg_ignite.preparation import prepare, read_index, roi, write_synthetic_release

NAME = 'patient1_he_roi1'


def test_arrays_hold_the_pixels_of_the_release(release, prepared):
    index = read_index(prepared)
    rows = {r['name']: r for r in csv.DictReader((release / 'data_overview.csv').open())}
    assert {r['name'] for r in index['rois']} == set(rows)
    for entry in index['rois']:
        name = entry['name']
        image = np.array(Image.open(release / 'images' / 'he' / f'{name}.png'))
        raw = (256 - np.array(Image.open(release / 'annotations' / 'he' / f'{name}.png')).astype(int)) % 256
        labels = np.load(label_path(prepared, name))
        np.testing.assert_array_equal(np.load(image_path(prepared, name)), image)
        np.testing.assert_array_equal(labels, np.where(raw == 0, 255, raw - 1))
        assert entry['pixels'] == [int((raw == i + 1).sum()) for i in range(16)]
        assert sum(entry['pixels']) + entry['unannotated'] == raw.size
        assert entry['patient'] == rows[name]['patient_id'] and entry['scanner'] == rows[name]['scanner']
        assert abs(entry['um_per_px'] - 0.5) < 1e-3


def test_contexts_hold_the_roi_at_its_origin(release, prepared):
    for entry in read_index(prepared)['rois']:
        name, (y, x) = entry['name'], entry['context']['origin']
        image, labels = (np.load(p(prepared, f'{name}_with_context')) for p in (image_path, label_path))
        np.testing.assert_array_equal(image, np.array(Image.open(release / f'images/he/{name}_with_context.png')))
        window = slice(y, y + entry['height']), slice(x, x + entry['width'])
        np.testing.assert_array_equal(image[window], np.load(image_path(prepared, name)))
        np.testing.assert_array_equal(labels[window], np.load(label_path(prepared, name)))
        assert (labels != IGNORE).sum() == sum(entry['pixels'])


def test_points_are_pixels_of_their_class(prepared, monkeypatch):
    for entry in read_index(prepared)['rois']:
        labels, points = np.load(label_path(prepared, entry['name'])), np.load(points_path(prepared, entry['name']))
        np.testing.assert_array_equal(labels[points[:, 1], points[:, 2]], points[:, 0])
        assert len(np.unique(points, axis=0)) == len(points)
        expected = [min(n, roi.POINTS) for n in entry['pixels']]
        assert np.bincount(points[:, 0], minlength=16).tolist() == expected


def test_both_encodings_prepare_to_the_same_labels(tmp_path):
    for encoding in ('complement', 'direct'):
        write_synthetic_release(tmp_path / encoding, 4, 4, (72, 80), 1, encoding)
        prepare(tmp_path / encoding, tmp_path / f'{encoding}_out')
    for entry in read_index(tmp_path / 'direct_out')['rois']:
        first, second = (np.load(label_path(tmp_path / f'{e}_out', entry['name'])) for e in ('complement', 'direct'))
        np.testing.assert_array_equal(first, second)


def test_real_tissue_prepares_with_its_known_faults(real_release, tmp_path, capsys):
    index = prepare(real_release, tmp_path / 'real')
    assert len(index['rois']) == 54 and sum(r['stray'] for r in index['rois']) == 1
    assert {r['encoding'] for r in index['rois']} == {'complement'}
    assert {tuple(r['context']['origin']) for r in index['rois']} <= {
        (12, 12),
        (32, 32),
    }  # its margins
    official = index['splits']['official']
    assert len(official['test']) == sum(r['official_split'] == 'test' for r in index['rois'])
    assert 'mask-stray' in capsys.readouterr().out


def test_a_failed_run_keeps_the_prepared_set(own_release, tmp_path):
    index = prepare(own_release, tmp_path / 'out')
    before = {p: p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()}
    (own_release / f'images/he/{NAME}.png').unlink()
    with pytest.raises(IgniteError):
        prepare(own_release, tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'index.json').read_text()) == index
    assert {p: p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()} == before


def test_a_repeated_run_redoes_only_what_changed(own_release, tmp_path):
    first = prepare(own_release, tmp_path / 'out')
    inode = {p: p.stat().st_ino for p in (tmp_path / 'out').rglob('*.npy')}
    path = own_release / f'images/he/{NAME}.png'
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    second = prepare(own_release, tmp_path / 'out')
    changed = {p.name for p, number in inode.items() if p.stat().st_ino != number}
    assert changed == {f'{NAME}.npy', f'{NAME}_with_context.npy'}
    np.testing.assert_array_equal(np.load(image_path(tmp_path / 'out', NAME)), pixels)
    assert [r for r in first['rois'] if r['name'] != NAME] == [r for r in second['rois'] if r['name'] != NAME]
    assert second == prepare(own_release, tmp_path / 'out')


def test_a_damaged_array_is_not_reused(own_release, tmp_path):
    prepare(own_release, tmp_path / 'out')
    cut, lost = image_path(tmp_path / 'out', NAME), label_path(tmp_path / 'out', 'patient2_he_roi1_with_context')
    whole, gone = cut.read_bytes(), lost.read_bytes()
    cut.write_bytes(whole[:500])
    lost.unlink()
    prepare(own_release, tmp_path / 'out')
    assert cut.read_bytes() == whole and lost.read_bytes() == gone


def test_the_command_publishes_the_figure_of_the_splits_with_the_data(own_release, tmp_path, monkeypatch):
    assert tool('prepare_ignite', '--release', own_release, '--out', tmp_path / 'out') == 0
    assert Image.open(tmp_path / 'out' / 'splits.png').width > 500
    monkeypatch.setattr(preparing, 'plot_split_shares', lambda index, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        preparing.prepare(own_release, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    assert prepare(own_release, tmp_path / 'out') and not (tmp_path / 'out' / 'splits.png').exists()


def test_too_little_disk_space_is_reported_before_the_work(own_release, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('Usage', (), dict(free=1000))())
    with pytest.raises(IgniteError, match='GB free'):
        prepare(own_release, tmp_path / 'out')
    assert [p.name for p in tmp_path.iterdir()] == ['release']


def test_contexts_can_be_skipped(own_release, tmp_path):
    whole = prepare(own_release, tmp_path / 'whole')
    index = prepare(own_release, tmp_path / 'out', context=False)
    assert all(r['context'] is None for r in index['rois']) and all(r['context'] for r in whole['rois'])
    assert not list((tmp_path / 'out').rglob('*_with_context*'))
    assert 'context-missing' not in (tmp_path / 'out' / 'audit.json').read_text()


def test_changing_to_no_context_reuses_the_arrays(own_release, tmp_path):
    out = tmp_path / 'out'
    prepare(own_release, out)
    before = {p.name: p.stat().st_ino for p in (out / 'images').iterdir()}
    index = prepare(own_release, out, context=False)
    after = {p.name: p.stat().st_ino for p in (out / 'images').iterdir()}
    assert set(after) == {f'patient{n}_he_roi1.npy' for n in (1, 2, 3, 4)} and after.items() <= before.items()
    for entry in index['rois']:
        assert entry['context'] is None and set(entry['sources']) == {'image', 'mask'} and len(entry['arrays']) == 3
    fresh = prepare(own_release, tmp_path / 'fresh', context=False)
    assert fresh == index
    assert all(r['context'] for r in prepare(own_release, out)['rois'])


def test_a_context_that_was_skipped_before_is_reported_as_missing(own_release, tmp_path):
    for folder in ('images', 'annotations'):
        (own_release / folder / 'he' / f'{NAME}_with_context.png').unlink()
    prepare(own_release, tmp_path / 'out', context=False)
    index = prepare(own_release, tmp_path / 'out')
    (entry,) = [r for r in index['rois'] if r['name'] == NAME]
    assert [f['kind'] for f in entry['findings'] if f['kind'] == 'context-missing']


@pytest.mark.parametrize('path', [image_path, label_path, points_path])
def test_a_changed_array_is_not_reused(own_release, tmp_path, path):
    prepare(own_release, tmp_path / 'out')
    array = path(tmp_path / 'out', NAME)
    whole = array.read_bytes()
    array.write_bytes(whole[:128] + bytes(len(whole) - 128))
    prepare(own_release, tmp_path / 'out')
    assert array.read_bytes() == whole


def test_a_release_given_as_a_dot_gets_its_name(own_release, tmp_path, monkeypatch):
    monkeypatch.chdir(own_release)
    assert prepare('.', tmp_path / 'out')['release'] == 'release'
    assert json.loads((tmp_path / 'out' / 'audit.json').read_text())['release'] == 'release'


def test_the_release_and_the_current_folder_are_not_replaced(own_release, tmp_path, monkeypatch):
    before = sorted(own_release.rglob('*'))
    (tmp_path / 'link').symlink_to(own_release)
    for out in (own_release, tmp_path, tmp_path / 'link'):
        with pytest.raises(IgniteError, match='is in the output folder'):
            prepare(own_release, out)
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(IgniteError, match='is the current folder'):
        prepare(own_release, '.')
    assert sorted(own_release.rglob('*')) == before


def test_a_full_disk_is_one_sentence(own_release, tmp_path, monkeypatch):
    def write_json(path, content):
        raise OSError(28, 'No space left on device', str(path))

    # The package's attribute `prepare` is the function.
    monkeypatch.setattr(sys.modules['mmseg_ignite.preparation.prepare'], 'write_json', write_json)
    with pytest.raises(IgniteError, match='index.json cannot be written.*No space left') as caught:
        prepare(own_release, tmp_path / 'out')
    assert len(str(caught.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['release']
    with pytest.raises(IgniteError, match='File name too long'):
        prepare(own_release, tmp_path / ('o' * 300))
