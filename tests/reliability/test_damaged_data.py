"""A damaged index or array of a prepared data set ends in one sentence, before its values reach a network or a score."""

import copy
import json
import pickle
import shutil
import time
import warnings

import numpy as np
import pytest
from conftest import small_config, tool

from mmseg_ignite.apis.checks import check_run
from mmseg_ignite.apis.configuration import resolved
from mmseg_ignite.datasets import IGNITECropDataset, IGNITEDataset
from mmseg_ignite.datasets.crop_stream import CropStream
from mmseg_ignite.datasets.index_schema import array_shapes, check_index
from mmseg_ignite.datasets.prepared import image_path, label_path, open_array, points_path, read_index, select
from mmseg_ignite.datasets.transforms import LoadIGNITERegion
from mmseg_ignite.datasets.verification import check_sample, roi_faults
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.preparation import prepare

HEX = '0' * 64


@pytest.fixture(scope='module')
def index(prepared):
    return read_index(prepared)


@pytest.fixture
def small(prepared, tmp_path):
    """A prepared data set that a test may change, and the first ROI of its training part."""
    root = shutil.copytree(prepared, tmp_path / 'ignite')
    return root, select(read_index(root), 'patient-8-1-1', 'train', str(root))[0]


def refused(index, **changes):
    """Return the sentence on an index whose second ROI has other values; None deletes a key."""
    changed = copy.deepcopy(index)
    for key, value in changes.items():
        changed['rois'][1][key] = value
    with pytest.raises(IgniteError) as error:
        check_index(changed, 'data/index.json')
    text = str(error.value)
    assert text.startswith('data/index.json ') and text.endswith('.') and len(text) < 500
    return text


@pytest.mark.parametrize(
    'name', ['../evil', '/etc/evil', 'a/b', 'a\\b', '..', '', 'x' * 300, 'a\0b', None, 7, '\ud800', ['a']]
)
def test_a_name_that_leads_elsewhere_is_refused(index, name):
    assert 'name' in refused(index, name=name)


@pytest.mark.parametrize(
    'key, values',
    {
        'patient': (None, '', -1, 1.5, True, [], 'x' * 5000, '\ud800'),
        'height': (None, 0, -1, 65536, 2**62, 1.5, True, '90', [90]),
        'width': (None, 0, 10**400),
        'um_per_px': (0, -0.5, 1e9, 10**400, True, '0.5'),
        'pixels': (
            None,
            [],
            [0] * 15,
            [0] * 15 + [-1],
            [0] * 15 + [2**62],
            [0] * 15 + [0.5],
            [0] * 15 + [True],
            'x' * 16,
        ),
        'unannotated': (-1, 2**62, 0.0, None),
        'encoding': ('other', None, 3, ['direct']),
        'context': (0, [], {}, {'height': 1, 'width': 1}, {'height': 300, 'width': 300, 'origin': [-1, 0]}),
        'sources': ([], {'image': 'x' * 64}, {'image': HEX[:-1]}, {'image': 1}, {'other': HEX}),
        'arrays': ([], {'images/a.npy': 1}, {'images/a.npy': 'short'}, {'../../evil': HEX}, {'images/other.npy': HEX}),
        'findings': ({}, [1], [{}], [{'kind': 1, 'subject': '', 'detail': '', 'roi': ''}]),
        'picture': (1, 'x', []),
        'organ': (1, None, '\ud800', ['lung']),
    }.items(),
)
def test_each_value_of_an_roi_is_checked_and_named(index, key, values):
    name = index['rois'][1]['name']
    for value in values:
        text = refused(index, **{key: value})
        assert key in text and name in text, (value, text)


def test_values_that_contradict_each_other_are_refused(index):
    entry = index['rois'][1]
    more = [entry['height'] * entry['width'] + 1, *[0] * 15]
    assert 'pixels' in refused(index, pixels=more, unannotated=0) and 'pixels' in refused(
        index, height=entry['height'] + 1
    )
    outside = dict(entry['context'], origin=[entry['context']['height'] - 1, 0])
    assert 'context' in refused(index, context=outside)
    assert 'twice' in refused(index, name=index['rois'][0]['name'], arrays={})


def test_splits_name_known_rois_once(index):
    name = index['rois'][0]['name']
    wrong = ({'train': name}, {'train': ['other']}, {'train': [None]}, {'train': [[]]}, {'train': [name, name]})
    for parts in (None, [], *wrong, {'train': [name], 'test': [name]}):
        with pytest.raises(IgniteError, match='split'):
            check_index(dict(index, splits={'official': parts}), 'index.json')


@pytest.mark.parametrize(
    'key, value', [('format', 1), ('format', '2'), ('classes', ['a']), ('rois', {}), ('rois', [7]), ('splits', []),
                   ('channel_order', 'BGR'), ('label_map', [1]), ('left_out', 'a'), ('audit_rules', None)],
)  # fmt: skip
def test_the_rest_of_the_index_is_checked(index, key, value):
    with pytest.raises(IgniteError, match=key.removesuffix('s') if key != 'rois' else '(?i)roi'):
        check_index({**index, key: value}, 'index.json')


@pytest.mark.parametrize(
    'content', [b'', b'{', b'\xff\xfe', b'null', b'[' * 100_000, b'{"format": NaN}', b'{"format": 1e999}', b'9' * 5000]
)
def test_content_that_is_not_an_index_is_one_sentence(tmp_path, content):
    (tmp_path / 'index.json').write_bytes(content)
    with pytest.raises(IgniteError, match='index.json is (not|nested) .*: prepare the data again'):
        read_index(tmp_path)


def test_older_and_smaller_indexes_are_read(index):
    needed = ('name', 'patient', 'height', 'width', 'um_per_px', 'pixels')
    older = dict(index, rois=[{key: roi[key] for key in needed} for roi in index['rois']])
    check_index({key: older[key] for key in ('format', 'classes', 'rois', 'splits')}, 'index.json')
    digests = [dict(roi, arrays=dict.fromkeys(roi['arrays'], '0' * 32), um_per_px=None) for roi in index['rois']]
    check_index(dict(index, rois=digests, added_later=1), 'index.json')


def test_ten_thousand_rois_are_checked_quickly(index):
    first, rois = index['rois'][0], []
    for number in range(10_000):
        roi = copy.deepcopy(first)
        roi['name'] = f'roi{number}'
        roi['arrays'] = dict.fromkeys(array_shapes(roi), HEX)
        rois.append(roi)
    names = [roi['name'] for roi in rois]
    parts = {'train': names[:8000], 'val': names[8000:9000], 'test': names[9000:]}
    large = dict(index, rois=rois, splits=dict.fromkeys(index['splits'], parts))
    start = time.process_time()
    check_index(large, 'index.json')
    assert time.process_time() - start < 2, '0.2 s on an idle core'


class Trap:
    """An object whose unpickling leaves a trace."""

    opened = False

    def __reduce__(self):
        return setattr, (Trap, 'opened', True)


DAMAGES = {
    'Fortran order': lambda path, old: np.save(path, np.asfortranarray(old)),
    'values of the type <i8': lambda path, old: np.save(path, old.astype(np.int64)),
    'it is .* was expected': lambda path, old: np.save(path, old[..., :-1]),
    'was expected': lambda path, old: np.save(path, old[..., None]),
    'bytes; its header states': lambda path, old: path.write_bytes(path.read_bytes()[:-1]),
    'header states': lambda path, old: path.write_bytes(path.read_bytes() + b'\0'),
    'is empty': lambda path, old: path.write_bytes(b''),
    'does not start like': lambda path, old: path.write_bytes(b'\x89PNG' + path.read_bytes()[4:]),
    'header is damaged': lambda path, old: path.write_bytes(path.read_bytes().replace(b"'shape'", b"'shapE'")),
    'header claims': lambda path, old: path.write_bytes(path.read_bytes()[:8] + b'\xff\xff' + path.read_bytes()[10:]),
    'No such file': lambda path, old: path.unlink(),
}


@pytest.mark.parametrize('reason', DAMAGES)
def test_every_array_is_checked_when_it_is_opened(small, reason):
    root, entry = small
    for name in array_shapes(entry):
        path = root / name
        content, old = path.read_bytes(), np.load(path)
        open_array(path)
        DAMAGES[reason](path, old)
        with pytest.raises(IgniteError, match=f'{path.name} cannot be read .*{reason}.*: prepare the data again'):
            open_array(path)
        path.write_bytes(content)


def test_a_header_is_neither_unpickled_nor_allocated(small):
    root, entry = small
    path = label_path(root, entry['name'])
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(IgniteError, match='damaged|type'):
        open_array(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(IgniteError, match='does not start like'):
        open_array(path)
    assert not Trap.opened
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 999999999999), }"
    path.write_bytes(b'\x93NUMPY\1\0' + (118).to_bytes(2, 'little') + header.ljust(117).encode() + b'\n')
    with pytest.raises(IgniteError, match='128 bytes; its header states'):
        open_array(path)


def test_arrays_exchanged_between_rois_are_found(small):
    root, entry = small
    other = next(roi for roi in read_index(root)['rois'] if roi['height'] != entry['height'])
    for path in (image_path, label_path):
        first, second = path(root, entry['name']), path(root, other['name'])
        content = first.read_bytes(), second.read_bytes()
        first.write_bytes(content[1]), second.write_bytes(content[0])
        with pytest.raises(IgniteError, match=f'{first.name} cannot be read'):
            open_array(first)


@pytest.mark.parametrize('context', [False, True])
def test_wrong_labels_are_reported_with_their_file(small, context):
    root, entry = small
    path = label_path(root, entry['name'] + '_with_context' * context)
    labels = np.load(path)
    labels[labels != 255] = 16
    np.save(path, labels)
    stream = CropStream(root, [entry], crop_size=(32, 32), use_context=context)
    with pytest.raises(IgniteError, match=f'{path.name} has the label 16'):
        stream.read(0, 0)
    if not context:
        dataset = IGNITEDataset(str(root), 'train', pipeline=[LoadIGNITERegion()])
        with pytest.raises(IgniteError, match=f'{path.name} has the label 16 in'):
            dataset[0]


@pytest.mark.parametrize(
    'change, reason',
    [(lambda p, e: p[:, 1].fill(e['height']), 'outside'), (lambda p, e: p[:, 2].fill(e['width']), 'outside'),
     (lambda p, e: p[:, 0].fill(16), 'outside'), (lambda p, e: p[:, 0].fill(e['pixels'].index(0)), 'other classes'),
     (lambda p, e: p.__setitem__(slice(None), p[::-1].copy()), 'sorted')],
)  # fmt: skip
def test_points_outside_their_roi_are_refused(small, change, reason):
    root, entry = small
    points = np.load(path := points_path(root, entry['name']))
    change(points, entry)
    np.save(path, points)
    with pytest.raises(IgniteError, match=f'{path.name} has .*{reason}'):
        CropStream(root, [entry])


def test_an_roi_without_a_resolution_has_crops_of_its_pixels_only(small):
    root, _ = small
    index = read_index(root)
    for roi in index['rois']:
        roi['um_per_px'] = None
    (root / 'index.json').write_text(json.dumps(index))
    with pytest.raises(IgniteError, match='has no um/px'):
        IGNITECropDataset(str(root), pipeline=[])
    dataset = IGNITECropDataset(str(root), pipeline=[], crops=dict(um_per_px=None, crop_size=(32, 32)))
    assert dataset[0, 0]['um_per_px'] is None


def flip(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def zeros(path):
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(len(content) - 128))


@pytest.mark.parametrize('damage', [flip, zeros])
def test_checksums_reveal_every_change(small, damage):
    root, entry = small
    assert roi_faults(root, entry) == [] and check_sample(root, [entry], True) == 5
    for name in array_shapes(entry):
        content = (root / name).read_bytes()
        damage(root / name)
        assert any(f'{name} was changed since' in fault for fault in roi_faults(root, entry))
        with pytest.raises(IgniteError, match=f'{name} was changed since.*--verify'):
            check_sample(root, [entry], use_context=True)
        (root / name).write_bytes(content)


def test_a_sample_takes_about_its_time(small, monkeypatch):
    root, _ = small
    rois = read_index(root)['rois']
    assert check_sample(root, rois, True, seconds=60) == 5 * len(rois)
    assert check_sample(root, rois, True, seconds=0) == 0
    now = iter(range(1000))
    monkeypatch.setattr('mmseg_ignite.datasets.verification.time.monotonic', lambda: next(now))
    assert check_sample(root, rois, True, seconds=20) == 9


def test_a_training_and_a_test_start_with_a_sample(small, tmp_path, monkeypatch):
    root, entry = small
    cfg = resolved(small_config(root, tmp_path / 'work'))
    check_run(cfg, 'training'), check_run(cfg, 'test')
    flip(image_path(root, entry['name']))
    check_run(cfg, 'test')  # of another part
    with pytest.raises(IgniteError, match=f'{entry["name"]}.npy was changed since'):
        check_run(cfg, 'training')
    monkeypatch.setattr('mmseg_ignite.apis.checks.is_main_process', lambda: False)
    check_run(cfg, 'training')


def without_checksums(root):
    index = read_index(root)
    for roi in index['rois']:
        roi['arrays'] = dict.fromkeys(roi['arrays'], '0' * 32)
    (root / 'index.json').write_text(json.dumps(index))


def test_an_older_index_cannot_be_verified_and_says_so(small, tmp_path, capsys):
    root, _ = small
    without_checksums(root)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        check_run(resolved(small_config(root, tmp_path / 'work')), 'training')
    assert ['cannot be verified' in str(w.message) for w in caught].count(True) == 1
    assert tool('prepare_ignite', '--verify', '--out', root) == 2
    output = capsys.readouterr()
    assert output.out.count('cannot be verified') == 60 and 'has 60 fault(s)' in output.err


def test_verify_lists_every_fault(small, capsys):
    root, entry = small
    assert tool('prepare_ignite', '--verify', '--out', root) == 0
    other = next(roi['name'] for roi in read_index(root)['rois'] if roi['name'] != entry['name'])
    capsys.readouterr()
    flip(image_path(root, entry['name']))
    zeros(label_path(root, entry['name']))
    points_path(root, other).unlink()
    assert tool('prepare_ignite', '--verify', '--out', root) == 2
    output = capsys.readouterr()
    assert (
        f'images/{entry["name"]}.npy was changed' in output.out
        and f'labels/{entry["name"]}.npy was changed' in output.out
    )
    assert (
        f'labels/{entry["name"]}.npy has other pixels' in output.out
        and f'points/{other}.npy cannot be read' in output.out
    )
    assert 'has 4 fault(s)' in output.err and 'Traceback' not in output.err


@pytest.mark.parametrize('arguments', [['--verify', '--release', 'r'], ['--verify', '--download'], []])
def test_verify_takes_no_release(arguments, capsys):
    assert tool('prepare_ignite', *arguments) == 2 and 'usage:' in capsys.readouterr().err


def test_preparing_again_replaces_damaged_arrays(own_release, tmp_path):
    out = tmp_path / 'ignite'
    entry = prepare(own_release, out)['rois'][0]
    flip(image_path(out, entry['name']))
    prepare(own_release, out)
    assert not any(roi_faults(out, roi) for roi in read_index(out)['rois'])
