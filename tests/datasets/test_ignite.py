import json
import shutil
import warnings

import numpy as np
import pytest
from conftest import DEMO_CONFIG
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from mmseg_ignite.apis import load_config
from mmseg_ignite.apis.checks import check_data
from mmseg_ignite.datasets.prepared import image_path, label_path
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES, PALETTE
from mmseg_ignite.preparation import read_index

STOCK = [
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(48, 48), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomRotate', prob=1.0, degree=20),
    dict(type='PackSegInputs'),
]


def build(prepared, pipeline, split='train', **kwargs):
    return DATASETS.build(
        dict(type='mmseg.IGNITEDataset', data_root=str(prepared), split=split, pipeline=pipeline, **kwargs)
    )


def test_rois_equal_the_stored_arrays_in_bgr(prepared):
    names = []
    for split in ('train', 'val', 'test'):
        dataset = build(prepared, [dict(type='mmseg.LoadIGNITERegion')], split)
        assert dataset.metainfo['classes'] == CLASSES
        assert [tuple(c) for c in dataset.metainfo['palette']] == list(PALETTE)
        for sample in dataset:
            np.testing.assert_array_equal(sample['img'][..., ::-1], np.load(image_path(prepared, sample['roi'])))
            np.testing.assert_array_equal(sample['gt_seg_map'], np.load(label_path(prepared, sample['roi'])))
            names.append(sample['roi'])
    assert sorted(names) == sorted(r['name'] for r in read_index(prepared)['rois'])


def test_samples_have_the_metadata_of_their_roi(prepared):
    """The configs' pipeline passes it on to the metric."""
    init_default_scope('mmseg')
    cfg = load_config(DEMO_CONFIG)
    by_name = {r['name']: r for r in read_index(prepared)['rois']}
    for sample in build(prepared, cfg.test_pipeline, 'test'):
        found = sample['data_samples'].to_dict()
        entry = by_name[found['roi']]
        assert set(found['metadata']) == {'source', 'specimen_type', 'organ', 'histological_subtype', 'scanner'}
        assert found['metadata'].items() <= entry.items()


def test_mmseg_transforms_are_accepted(prepared):
    init_default_scope('mmseg')
    sample = build(prepared, [dict(type='LoadIGNITERegion'), *STOCK])[0]
    assert sample['inputs'].shape[0] == 3
    assert set(np.unique(sample['data_samples'].gt_sem_seg.data.numpy())) <= {*range(16), 255}


def test_metainfo_selects_classes(prepared):
    classes = (CLASSES[3], CLASSES[0])
    dataset = build(prepared, [dict(type='mmseg.LoadIGNITERegion')], metainfo=dict(classes=classes))
    for sample in dataset:
        labels = np.load(label_path(prepared, sample['roi']))
        np.testing.assert_array_equal(
            sample['gt_seg_map'], np.select([labels == 3, labels == 0], [0, 1], 255).astype(np.uint8)
        )


def test_images_with_context_have_the_labels_of_the_roi(prepared):
    """Labels are at ``roi_box``, 255 around it; selecting classes works as without context."""
    classes = (CLASSES[3], CLASSES[0])
    for extra in ({}, dict(metainfo=dict(classes=classes))):
        pipeline = [dict(type='mmseg.LoadIGNITERegion')]
        samples = zip(*(build(prepared, pipeline, 'test', use_context=c, **extra) for c in (True, False)))
        for around, own in samples:
            top, left, bottom, right = around['roi_box']
            assert 'roi_box' not in own and around['roi'] == own['roi']
            image = np.load(image_path(prepared, f'{own["roi"]}_with_context'))
            np.testing.assert_array_equal(around['img'][..., ::-1], image)
            np.testing.assert_array_equal(around['gt_seg_map'][top:bottom, left:right], own['gt_seg_map'])
            assert around['img_shape'] == around['ori_shape'] == around['gt_seg_map'].shape == image.shape[:2]
            around['gt_seg_map'][top:bottom, left:right] = 255
            assert (around['gt_seg_map'] == 255).all()


def test_missing_context_is_reported_before_anything_is_built(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / 'ignite')
    index = read_index(prepared)
    names = index['splits']['patient-8-1-1']['test']
    for roi in index['rois']:
        roi['context'] = None
    (tmp_path / 'ignite' / 'index.json').write_text(json.dumps(index))
    with pytest.raises(IgniteError, match=f'{names[0]}.*--no-context'):
        build(tmp_path / 'ignite', [], 'test', use_context=True)
    cfg = load_config(DEMO_CONFIG, {'data_root': str(tmp_path / 'ignite'), 'test_dataloader.dataset.use_context': True})
    with pytest.raises(IgniteError, match=names[0]):
        check_data(cfg, 'test_dataloader')
    cfg.test_dataloader.dataset.update(type='IGNITECropDataset', pipeline=[])
    with pytest.raises(IgniteError, match='crops=dict'):
        DATASETS.build(cfg.test_dataloader.dataset)


@pytest.mark.parametrize(
    ('kwargs', 'words'), [(dict(split='train', protocol='fold9'), 'fold9'), (dict(split='holdout'), 'holdout')]
)
def test_unknown_protocol_or_split(prepared, kwargs, words):
    with pytest.raises(IgniteError, match=words):
        build(prepared, [], **kwargs)


def test_missing_data_root(tmp_path):
    with pytest.raises(IgniteError, match='prepare_ignite'):
        build(tmp_path, [])


def test_every_protocol_loads_and_a_leaking_one_warns(prepared):
    index = read_index(prepared)
    for protocol, parts in index['splits'].items():
        by_name = {r['name']: r['patient'] for r in index['rois']}
        sides = [{by_name[n] for n in names} for names in parts.values()]
        leaks = len(set.union(*(a & b for a in sides for b in sides if a is not b)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            dataset = build(prepared, [], 'val', protocol=protocol)
        found = [str(w.message) for w in caught if 'leaks' in str(w.message)]
        assert [s['roi'] for s in dataset] == parts['val']
        assert bool(found) == bool(leaks) and all(f'{leaks} patients' in message for message in found)
    assert leaks == 0 and 'roi-8-1-1' in index['splits']


def test_a_leaking_split_by_patient_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / 'ignite')
    index = read_index(prepared)
    parts = index['splits']['patient-8-1-1']
    by_name = {r['name']: r['patient'] for r in index['rois']}
    moved = next(n for n in parts['train'] if sum(by_name[m] == by_name[n] for m in parts['train']) > 1)
    parts['train'].remove(moved)
    parts['test'].append(moved)
    (tmp_path / 'ignite' / 'index.json').write_text(json.dumps(index))
    with pytest.raises(IgniteError, match=f'patient {by_name[moved]} '):
        build(tmp_path / 'ignite', [])
