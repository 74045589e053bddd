"""TissueDataPreProcessor gives what mmseg's SegDataPreProcessor gives."""

import copy

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

from mmseg_ignite.datasets import TissueSample, collate_crops
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.models import TissueDataPreProcessor

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
NORMALISE = dict(mean=MEAN, std=STD, bgr_to_rgb=True)
LARGE = [(40, 48)] * 3
MIXED = [(40, 48), (33, 20), (48, 31)]


def samples(sizes, kind=SegDataSample, dtype=torch.int64, seed=0, channels=3, image_dtype=torch.uint8):
    """Return packed samples of random images and labels."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for number, (height, width) in enumerate(sizes):
        image = torch.randint(256, (channels, height, width), generator=rng).to(image_dtype)
        labels = torch.randint(16, (1, height, width), generator=rng).to(dtype)
        sample = kind(metainfo=dict(roi=f'r{number}', img_shape=(height, width)), gt_sem_seg=PixelData(data=labels))
        found.append(dict(inputs=image, data_samples=sample))
    return found


def batch(items):
    return {key: [item[key] for item in items] for key in items[0]}


def check_equal(ours, stock):
    # Equal operations in equal order; a GPU may contract them, hence not bit for bit.
    torch.testing.assert_close(ours['inputs'].contiguous(), stock['inputs'].contiguous(), rtol=1e-6, atol=1e-6)
    assert ours['inputs'].dtype == torch.float32
    for own, other in zip(ours['data_samples'], stock['data_samples'], strict=True):
        assert own.metainfo == other.metainfo
        assert own.gt_sem_seg.data.dtype == torch.int64 and own.gt_sem_seg.data.device == other.gt_sem_seg.data.device
        assert torch.equal(own.gt_sem_seg.data, other.gt_sem_seg.data)


@pytest.mark.parametrize('labels', [(SegDataSample, torch.int64), (TissueSample, torch.uint8)], ids=['mmseg', 'uint8'])
@pytest.mark.parametrize(
    ('sizes', 'options'),
    [
        (LARGE, dict(size=(40, 48))),
        (LARGE, dict(size=(64, 50), pad_val=7, seg_pad_val=254)),
        (LARGE, dict(size=(30, 20))),
        (LARGE, dict(size_divisor=8)),
        (LARGE, dict(size_divisor=32)),
        (MIXED, dict(size=(64, 64))),
        (MIXED, dict(size_divisor=32)),
        (MIXED, dict(size_divisor=1)),
    ],
)
def test_training_batches_equal_those_of_mmseg(device, sizes, options, labels):
    stock = SegDataPreProcessor(**NORMALISE, **options).to(device)
    ours = TissueDataPreProcessor(**NORMALISE, **options).to(device)
    wanted = stock(batch(samples(sizes)), True)
    given = samples(sizes, *labels)
    check_equal(ours(batch(given), True), wanted)
    check_equal(ours(collate_crops(given), True), wanted)


@pytest.mark.parametrize('options', [{}, dict(bgr_to_rgb=True), dict(rgb_to_bgr=True, mean=[100.0], std=[50.0])])
@pytest.mark.parametrize('form', [(3, torch.uint8), (1, torch.uint8), (3, torch.float32), (3, torch.float64)])
def test_other_images_and_settings_equal_mmseg(device, options, form):
    given = samples(LARGE, channels=form[0], image_dtype=form[1])
    before = copy.deepcopy(given)
    ours = TissueDataPreProcessor(size=(40, 48), **options).to(device)(batch(given), True)
    check_equal(ours, SegDataPreProcessor(size=(40, 48), **options).to(device)(batch(given), True))
    for item, old in zip(given, before):
        assert torch.equal(item['inputs'], old['inputs'])
        assert item['data_samples'].metainfo == old['data_samples'].metainfo


@pytest.mark.parametrize('test_cfg', [None, dict(size=(64, 64)), dict(size_divisor=32)])
def test_test_batches_equal_those_of_mmseg(device, test_cfg):
    options = dict(**NORMALISE, size=(512, 512), test_cfg=test_cfg)
    stock = SegDataPreProcessor(**options).to(device)(batch(samples(LARGE)))
    check_equal(TissueDataPreProcessor(**options).to(device)(batch(samples(LARGE))), stock)
    inputs = TissueDataPreProcessor(**options).to(device)(
        dict(inputs=batch(samples(LARGE))['inputs'], data_samples=None)
    )
    assert torch.equal(inputs['inputs'], stock['inputs']) and inputs['data_samples'] is None


def test_edges_and_depth_are_moved_and_padded_as_by_mmseg(device):
    def given():
        items = samples(LARGE)
        for number, item in enumerate(items):
            edges = torch.full((1, 40, 48), number % 2)
            item['data_samples'].set_data(
                dict(gt_edge_map=PixelData(data=edges), gt_depth_map=PixelData(data=edges + 0.5))
            )
        return batch(items)

    for size in ((40, 48), (50, 50)):
        ours, stock = (
            kind(**NORMALISE, size=size).to(device)(given(), True)
            for kind in (TissueDataPreProcessor, SegDataPreProcessor)
        )
        check_equal(ours, stock)
        for own, other in zip(ours['data_samples'], stock['data_samples']):
            for name in ('gt_edge_map', 'gt_depth_map'):
                assert (
                    torch.equal(own.get(name).data, other.get(name).data)
                    and own.get(name).data.device.type == device.type
                )


def test_batch_augments_get_the_padded_batch():
    def augment(inputs, data_samples):
        assert inputs.shape == (3, 3, 64, 64) and data_samples[0].gt_sem_seg.shape == (64, 64)
        return -inputs, data_samples[::-1]

    ours, stock = (
        kind(**NORMALISE, size=(64, 64), batch_augments=augment)(batch(samples(LARGE)), True)
        for kind in (TissueDataPreProcessor, SegDataPreProcessor)
    )
    check_equal(ours, stock)


def test_the_batch_is_one_channels_last_tensor_and_the_given_samples_stay():
    given = collate_crops(samples(LARGE, TissueSample, torch.uint8))
    ours = TissueDataPreProcessor(**NORMALISE, size=(64, 64))(given, True)
    assert given['data_samples'][0].gt_sem_seg.data.dtype == torch.uint8
    assert (
        given['data_samples'][0].gt_sem_seg.shape == (40, 48) and 'pad_shape' not in given['data_samples'][0].metainfo
    )
    assert ours['data_samples'][0].gt_sem_seg.shape == (64, 64)
    unpadded = TissueDataPreProcessor(**NORMALISE, size=(40, 48))(given, True)['inputs']
    assert unpadded.is_contiguous(memory_format=torch.channels_last)


def test_the_stock_preprocessor_takes_uint8_samples(device):
    given = collate_crops(samples(LARGE, TissueSample, torch.uint8))
    options = dict(**NORMALISE, size=(64, 64))
    wanted = SegDataPreProcessor(**options).to(device)(batch(samples(LARGE)), True)
    check_equal(SegDataPreProcessor(**options).to(device)(given, True), wanted)


def test_images_are_moved_as_bytes(monkeypatch):
    moved = []
    given = batch(samples(LARGE, TissueSample, torch.uint8))
    ours = TissueDataPreProcessor(**NORMALISE, size=(40, 48))
    monkeypatch.setattr(ours, '_moved', lambda tensor: moved.append(tensor.dtype) or tensor)
    ours(given, True)
    assert moved == [torch.uint8] * 6


@pytest.mark.cuda
def test_pinned_batches_are_copied_without_waiting():
    given = collate_crops(samples(LARGE, TissueSample, torch.uint8))
    pinned = dict(inputs=given['inputs'].pin_memory(), data_samples=[s.pin_memory() for s in given['data_samples']])
    ours = TissueDataPreProcessor(**NORMALISE, size=(40, 48)).cuda()
    ours(pinned, True)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('error')
    try:
        ours(pinned, True)
        ours(given, True)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize('options', [dict(size=(64, 64), size_divisor=32), {}])
def test_one_of_size_and_divisor_is_needed(options):
    with pytest.raises(IgniteError, match='size of the data preprocessor .* size_divisor'):
        TissueDataPreProcessor(**NORMALISE, **options)(batch(samples(LARGE)), True)


def test_mixed_test_batches_and_training_without_samples_are_refused():
    ours = TissueDataPreProcessor(**NORMALISE, size=(64, 64))
    with pytest.raises(IgniteError, match=r'images of \[\(33, 20\), \(40, 48\), \(48, 31\)\]'):
        ours(batch(samples(MIXED)))
    with pytest.raises(IgniteError, match='no data_samples'):
        ours(dict(inputs=batch(samples(LARGE))['inputs']), True)
