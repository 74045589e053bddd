"""Samples with uint8 labels, batches in two tensors, and colours left to the device."""

import io
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.models import SegDataPreProcessor

from mmseg_ignite.datasets import IGNITECropDataset, TissueSample, collate_crops
from mmseg_ignite.datasets.deferred import changed_image
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.models import TissueDataPreProcessor

META = ('roi', 'img_path', 'img_shape', 'ori_shape')
COLOURS = [dict(type='RandStainNA', prob=0.5), dict(type='HEDJitter'), dict(type='RandomScannerEffects')]
NORMALISE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, size=(64, 64))


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


def pipeline(*transforms, pack='PackTissueInputs'):
    return [dict(type='RandomDihedral'), *transforms, dict(type=pack, meta_keys=META)]


def crops(prepared, transforms, **options):
    return IGNITECropDataset(str(prepared), pipeline=transforms, crops=dict(crop_size=(64, 64)), **options)


def test_the_sample_is_mmsegs_with_labels_of_one_byte(prepared):
    ours, stock = (
        crops(prepared, pipeline(*COLOURS, pack=pack))[3, 5] for pack in ('PackTissueInputs', 'PackSegInputs')
    )
    assert torch.equal(ours['inputs'], stock['inputs']) and ours['inputs'].dtype == torch.uint8
    own, other = ours['data_samples'], stock['data_samples']
    assert own.metainfo == other.metainfo and own.gt_sem_seg.data.dtype == torch.uint8
    assert own.gt_sem_seg.shape == other.gt_sem_seg.shape
    moved = own.to('cpu').gt_sem_seg.data
    assert moved.dtype == torch.int64 and torch.equal(moved, other.gt_sem_seg.data)


def test_a_batch_is_two_tensors(prepared):
    dataset = crops(prepared, pipeline())
    samples = [dataset[0, n] for n in range(3)]
    images = [sample['inputs'].clone() for sample in samples]
    labels = [sample['data_samples'].gt_sem_seg.data.clone() for sample in samples]
    batch = collate_crops(samples)
    assert batch['inputs'].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch['inputs'], torch.stack(images))
    maps = [sample.gt_sem_seg.data for sample in batch['data_samples']]
    assert all(map(torch.equal, maps, labels))
    assert len({part.untyped_storage().data_ptr() for part in maps}) == 1
    # A worker sends each storage once.
    received = pickle.loads(pickle.dumps(batch))
    stream = io.BytesIO()
    torch.save(batch, stream)
    assert len({part.gt_sem_seg.data.untyped_storage().data_ptr() for part in received['data_samples']}) <= 3
    assert stream.tell() < 3 * 64 * 64 * 4 * 1.5


def test_crops_of_several_sizes_stay_a_list(prepared):
    dataset = crops(prepared, pipeline())
    samples = [dataset[0, 0], dataset[0, 1, (32, 32)]]
    batch = collate_crops(samples)
    assert [tuple(image.shape) for image in batch['inputs']] == [(3, 64, 64), (3, 32, 32)]
    assert [sample.gt_sem_seg.shape for sample in batch['data_samples']] == [(64, 64), (32, 32)]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_gives_the_same_batches_with_both_collations(prepared, workers):
    def batches(collate):
        loader = Runner.build_dataloader(
            dict(
                batch_size=2,
                num_workers=workers,
                sampler=dict(type='CropStreamSampler'),
                collate_fn=dict(type=collate),
                dataset=crops(prepared, pipeline(*COLOURS)),
            ),
            seed=4,
        )
        preprocess, found = TissueDataPreProcessor(**NORMALISE), []
        for batch, _ in zip(loader, range(3)):
            data = preprocess(batch, True)
            found.append((data['inputs'], torch.stack([sample.gt_sem_seg.data for sample in data['data_samples']])))
        return found

    for ours, stock in zip(batches('collate_crops'), batches('pseudo_collate'), strict=True):
        assert torch.equal(ours[0], stock[0]) and torch.equal(ours[1], stock[1])


def test_deferred_colours_are_the_same_colours(prepared):
    at_once, later = (crops(prepared, pipeline(*COLOURS), defer_colours=defer) for defer in (False, True))
    changed = 0
    for n in range(12):
        now, then = at_once[1, n], later[1, n]
        plain = np.ascontiguousarray(then['inputs'].numpy().transpose(1, 2, 0))
        image = now['inputs'].numpy().transpose(1, 2, 0)
        assert np.array_equal(changed_image(then), image)
        assert np.array_equal(changed_image(now), image)
        assert torch.equal(now['data_samples'].gt_sem_seg.data, then['data_samples'].gt_sem_seg.data)
        changed += not np.array_equal(plain, image)
    assert changed == 12
    ours = TissueDataPreProcessor(**NORMALISE)
    given = [later[1, n] for n in range(12)]
    wanted = ours(pseudo_collate([at_once[1, n] for n in range(12)]), True)
    found = ours(collate_crops(given), True)
    difference = ((found['inputs'] - wanted['inputs']) * ours.std).abs()  # grey levels
    # As in tests/models/test_colour_changes.py; synthetic tissue is grainy, so JPEG differs more.
    assert (difference > 1.01).float().mean() < 0.03 and difference.mean() < 0.2
    assert not any(sample.colour_changes for sample in found['data_samples'])
    assert all(sample.colour_changes for sample in (item['data_samples'] for item in given))


def test_deferred_colours_do_not_depend_on_the_batch(prepared):
    dataset = crops(prepared, pipeline(*COLOURS), defer_colours=True)
    ours = TissueDataPreProcessor(**NORMALISE)
    together = ours(collate_crops([dataset[2, n] for n in range(6)]), True)['inputs']
    alone = torch.cat([ours(collate_crops([dataset[2, n]]), True)['inputs'] for n in range(6)])
    assert ((together - alone) * ours.std).abs().max() <= 1.01  # rounding of vectorised functions
    sizes = [dataset[2, 0], dataset[2, 1, (32, 32)]]
    assert ours(collate_crops(sizes), True)['inputs'].shape == (2, 3, 64, 64)


def test_a_preprocessor_that_would_drop_the_colours_is_refused(prepared):
    batch = collate_crops([crops(prepared, pipeline(*COLOURS), defer_colours=True)[0, 0]])
    with pytest.raises(IgniteError, match='model.data_preprocessor.type=TissueDataPreProcessor'):
        SegDataPreProcessor(**NORMALISE)(batch, True)


@pytest.mark.parametrize(
    ('transforms', 'message'),
    [
        (pipeline(), 'nothing to defer'),
        (pipeline(*COLOURS, dict(type='MacenkoAugment')), 'MacenkoAugment follows RandStainNA'),
        (pipeline(dict(type='HEDJitter'), dict(type='RandomDihedral')), 'RandomDihedral follows HEDJitter'),
        (pipeline(*COLOURS, pack='PackSegInputs'), 'ends with PackSegInputs'),
    ],
)
def test_pipelines_that_cannot_defer_are_refused(prepared, transforms, message):
    with pytest.raises(IgniteError, match=message):
        crops(prepared, transforms, defer_colours=True)
    with pytest.raises(IgniteError, match='defer_colours of the data set'):
        crops(prepared, transforms, defer_colours=1)


def test_transforms_that_measure_the_image_may_come_first(prepared):
    given = pipeline(dict(type='MacenkoAugment'), dict(type='HEDJitter'))
    now, then = (crops(prepared, given, defer_colours=defer)[0, 2] for defer in (False, True))
    assert np.array_equal(changed_image(then), now['inputs'].numpy().transpose(1, 2, 0))
    assert isinstance(then['data_samples'], TissueSample)
