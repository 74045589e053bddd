"""Ids decide what a mask means; other ids need a mapping from the user."""

import gzip
import json

import numpy as np
import pytest
from conftest import tool
from PIL import Image

from mmseg_ignite.datasets.prepared import label_path
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import IGNORE, RAW_LABEL_MAP, decode_mask
from mmseg_ignite.preparation import audit, prepare, read_index
from mmseg_ignite.preparation.label_map import LABEL_MAP, read_label_map


def write(folder, content, name=LABEL_MAP):
    (folder / name).write_text(json.dumps(content))
    return folder / name


def kinds(folder, stated=None):
    return {f.kind: f.detail for f in read_label_map(folder, stated)[1]}


def test_another_name_for_a_known_id_is_a_warning_that_names_both(tmp_path):
    names = {('Tumor cells' if i == 2 else name): i for name, i in RAW_LABEL_MAP.items()}
    write(tmp_path, names)
    assert kinds(tmp_path) == {'label-map-names': "its id 2 is called 'Tumor cells', here 'Tumor epithelium'"}
    assert read_label_map(tmp_path)[0] is None


def test_our_name_under_another_id_is_an_error(tmp_path):
    swapped = dict(RAW_LABEL_MAP, Stroma=5, Inflammation=4)
    write(tmp_path, swapped)
    found = kinds(tmp_path)
    assert "'Stroma', which is 4 here" in found['label-map-changed'] and len(found) == 1


@pytest.mark.parametrize('change, detail', [({'Artefact': 17}, '17'), ({'Liver': None}, 'lacks the id(s) 15 (Liver)')])
def test_other_ids_are_an_error_unless_mapped(tmp_path, change, detail):
    write(tmp_path, {k: v for k, v in (RAW_LABEL_MAP | change).items() if v is not None})
    assert detail in kinds(tmp_path)['label-map-changed']
    stated = write(tmp_path, {'Artefact': 0} if 'Artefact' in change else {}, 'mine.json')
    assert kinds(tmp_path, stated).keys() == {'label-map-stated'}


def test_a_gzipped_label_map_reads_the_same(tmp_path):
    path = write(tmp_path, RAW_LABEL_MAP)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert kinds(tmp_path).keys() == {'label-map-compressed'}


def test_a_mapping_by_name_or_id_replaces_what_it_names(tmp_path):
    write(tmp_path, {'None': 0, 'Glass': 3, 'tumor_epithelium': 20, 'Stroma': 4})
    ids, findings = read_label_map(tmp_path, write(tmp_path, {'glass': 1, '20': 2}, 'mine.json'))
    assert ids == {0: 0, 3: 1, 20: 2, 4: 4}
    assert {f.kind for f in findings} == {'label-map-stated', 'label-map-names'}
    (tmp_path / LABEL_MAP).unlink()  # ids can be mapped without a label map of the release
    ids, findings = read_label_map(tmp_path, write(tmp_path, {'20': 2}, 'mine.json'))
    assert ids == {**{i: i for i in range(17)}, 20: 2} and [f.kind for f in findings] == ['label-map-stated']


@pytest.mark.parametrize(
    'content', ['{', '[]', '{"Stroma": 17}', '{"Stroma": true}', '{"Stroma": "4"}', '{"Nonsense": 4}', '{"128": 4}',
                '{"4": 4, "Stroma": 5}']
)  # fmt: skip
def test_a_wrong_mapping_is_one_sentence(tmp_path, content):
    write(tmp_path, RAW_LABEL_MAP)
    (tmp_path / 'mine.json').write_text(content)
    with pytest.raises(IgniteError, match='--label-map') as caught:
        read_label_map(tmp_path, tmp_path / 'mine.json')
    assert len(str(caught.value).splitlines()) == 1 and 'mine.json' in str(caught.value)


@pytest.mark.parametrize('complement', [False, True])
def test_masks_are_decoded_by_the_mapping_in_either_encoding(complement):
    rng = np.random.default_rng()
    ids = dict(zip(rng.permutation(np.arange(1, 128))[:30].tolist(), rng.integers(0, 17, 30).tolist())) | {0: 0}
    raw = rng.choice(list(ids), (40, 50))
    stored = ((256 - raw) % 256 if complement else raw).astype(np.uint8)
    expected = [[IGNORE if ids[v] == 0 else ids[v] - 1 for v in row] for row in raw.tolist()]
    decoded = decode_mask(stored, ids=ids)
    assert decoded.labels.tolist() == expected and decoded.stray == 0
    assert decoded.encoding == ('complement' if complement else 'direct')
    other = dict(ids)
    del other[int(np.bincount(raw[raw > 0]).argmax())]  # unmapped ids are not classes
    with pytest.raises(IgniteError, match='not a class|were expected'):
        decode_mask(stored, ids=other)


def test_a_class_of_id_0_fills_an_empty_mask():
    assert (decode_mask(np.zeros((4, 5), np.uint8), ids={0: 1}).labels == 0).all()


@pytest.fixture
def shifted(own_release):
    """A release with other ids (Background is 20 etc.); ROI masks stay complemented, context masks direct."""
    write(own_release, {name: i + 19 if i else 0 for name, i in RAW_LABEL_MAP.items()})
    for path in (own_release / 'annotations' / 'he').glob('*.png'):
        values = np.array(Image.open(path)).astype(int)
        other = np.where(values > 128, values - 19, values + 19)
        Image.fromarray(np.where(values == 0, 0, other).astype(np.uint8)).save(path)
    return own_release


def test_a_release_with_other_ids_is_prepared_by_a_mapping(shifted, tmp_path):
    stated = write(tmp_path, RAW_LABEL_MAP, 'mine.json')
    with pytest.raises(IgniteError, match='--label-map'):
        prepare(shifted, tmp_path / 'out')
    assert tool('prepare_ignite', '--release', shifted, '--out', tmp_path / 'out', '--label-map', stated) == 0
    index = read_index(tmp_path / 'out')
    assert index['label_map'] == {'0': 0, **{str(i + 19): i for i in range(1, 17)}}
    found = json.loads((tmp_path / 'out' / 'audit.json').read_text())['findings']
    assert any(f['kind'] == 'label-map-stated' and '20 is Background' in f['detail'] for f in found)
    for roi in index['rois']:
        values = np.array(Image.open(shifted / 'annotations' / 'he' / f'{roi["name"]}.png')).astype(int)
        expected = np.where(values == 0, IGNORE, 256 - values - 20)
        np.testing.assert_array_equal(np.load(label_path(tmp_path / 'out', roi['name'])), expected)
        assert roi['context'] is not None


def test_another_mapping_decodes_again(shifted, tmp_path):
    stated = write(tmp_path, RAW_LABEL_MAP, 'mine.json')
    first = prepare(shifted, tmp_path / 'out', label_map=stated)
    write(tmp_path, dict(RAW_LABEL_MAP, Stroma=5), 'mine.json')
    second = prepare(shifted, tmp_path / 'out', label_map=stated)
    before, after = (np.sum([r['pixels'] for r in i['rois']], 0) for i in (first, second))
    assert before[3] > 0 and after[3] == 0 and after[4] == before[3] + before[4]
    assert audit(shifted, tmp_path / 'out', label_map=stated).ids[23] == 5
