"""The stream depends only on (seed, n), its crops match a plain loop, and its distribution is as documented."""

import hashlib
import shutil
import sys

import numpy as np
import pytest
import torch
from forks import forked, in_two
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dist import get_rank
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmseg.registry import DATASETS

from mmseg_ignite.datasets import crop_stream
from mmseg_ignite.datasets.crop_stream import (
    CropPosition,
    CropStream,
    CropStreamSampler,
    _turn,
    _window,
    philox,
    seeded,
)
from mmseg_ignite.datasets.prepared import image_path, label_path
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES, IGNORE, count_classes
from mmseg_ignite.preparation import read_index

PIPELINE = [
    dict(type='mmseg.RandomDihedral'),
    dict(type='mmseg.HEDJitter'),
    dict(type='mmseg.RandomScannerEffects'),
    dict(type='mmseg.PhotoMetricDistortion'),
    dict(type='mmseg.PackSegInputs'),
]
CROPS = dict(crop_size=(40, 48), um_per_px=(0.4, 0.7), rotation='any')


def config(prepared, workers=0, batch=4):
    data = dict(type='mmseg.IGNITECropDataset', data_root=str(prepared), split='train', crops=CROPS, pipeline=PIPELINE)
    return dict(batch_size=batch, num_workers=workers, sampler=dict(type='mmseg.CropStreamSampler'), dataset=data)


def dataset(prepared, split='train', pipeline=(), metainfo=None, **crops):
    cfg = dict(type='mmseg.IGNITECropDataset', data_root=str(prepared), split=split, metainfo=metainfo)
    crops = dict(um_per_px=None, rotation='none') | crops
    return DATASETS.build(dict(cfg, crops=crops, pipeline=list(pipeline)))


def digest(batch):
    value = hashlib.sha256()
    for image, sample in zip(batch['inputs'], batch['data_samples']):
        value.update(image.numpy().tobytes() + sample.gt_sem_seg.data.numpy().tobytes() + sample.img_path.encode())
    return value.hexdigest()


def batches(loader, count):
    return [digest(b) for b, _ in zip(loader, range(count))]


def stream(prepared, **arguments):
    return CropStream(prepared, read_index(prepared)['rois'], **arguments)


def assert_same(crop, other):
    assert crop.get('position') == other.get('position')
    for key in ('img', 'gt_seg_map'):
        np.testing.assert_array_equal(crop[key], other[key])


# --- reproducibility


@pytest.mark.parametrize('workers', [1, 4])
def test_workers_do_not_change_the_stream(prepared, workers):
    alone = Runner.build_dataloader(config(prepared), seed=7)
    several = Runner.build_dataloader(config(prepared, workers), seed=7)
    assert batches(alone, 9) == batches(several, 9)
    assert len(set(batches(alone, 9))) == 9


def test_seeds_give_different_streams(prepared):
    one, two = (batches(Runner.build_dataloader(config(prepared), seed=s), 5) for s in (1, 2))
    assert not set(one) & set(two)


def test_two_processes_together_see_the_crops_of_one(prepared, tmp_path):
    """Two gloo processes with batch 2 see the same crops as one with batch 4, in every iteration."""

    def work():
        torch.distributed.init_process_group('gloo')
        loader = Runner.build_dataloader(config(prepared, 1, batch=2), seed=7)
        with open(tmp_path / f'rank{get_rank()}.txt', 'w') as stream:
            for number, batch in zip(range(4), loader):
                for image, sample in zip(batch['inputs'], batch['data_samples']):
                    print(number, digest(dict(inputs=[image], data_samples=[sample])), file=stream)
        torch.distributed.destroy_process_group()

    status = forked(lambda: sys.exit(int(any(in_two(work)))), tmp_path / 'output.txt')
    assert status == 0, (tmp_path / 'output.txt').read_text()[-3000:]
    ranks = [(tmp_path / f'rank{rank}.txt').read_text().splitlines() for rank in (0, 1)]
    assert [len(lines) for lines in ranks] == [8, 8]
    seen = [line.split() for lines in ranks for line in lines]
    for number, batch in zip(range(4), Runner.build_dataloader(config(prepared), seed=7)):
        alone = [digest(dict(inputs=[i], data_samples=[s])) for i, s in zip(batch['inputs'], batch['data_samples'])]
        assert sorted(alone) == sorted(d for n, d in seen if int(n) == number)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_stream_continues_the_uninterrupted_one(prepared, workers):
    """Skip with mmengine's iterator, as in a resumed training run; skipped crops are not loaded."""
    whole = batches(Runner.build_dataloader(config(prepared), seed=7), 8)
    resumed = _InfiniteDataloaderIterator(Runner.build_dataloader(config(prepared, workers), seed=7))
    resumed.skip_iter(5)
    assert [digest(next(resumed)) for _ in range(3)] == whole[5:]


def test_ranks_share_the_numbers(monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setattr(crop_stream, 'get_dist_info', lambda rank=rank: (rank, 3))
        sampler = CropStreamSampler([0] * 5, seed=1)
        sampler.skip(2)
        seen += [n for (_, n), _ in zip(sampler, range(4))]
    assert sorted(seen) == list(range(6, 18))


def test_global_random_state_is_restored(prepared):
    np.random.seed(3)
    expected = np.random.random(2)
    np.random.seed(3)
    first = np.random.random()
    dataset(prepared, pipeline=PIPELINE, crop_size=(32, 32))[(0, 5)]
    assert [first, np.random.random()] == expected.tolist()


def test_augmentations_and_positions_are_independent():
    """Random numbers of neighbouring crops, and of position and pipeline, are uncorrelated."""
    numbers = []
    for n in range(4000):
        with seeded(5, n):
            numbers.append([*philox(5, n).random(3), *np.random.random(3)])
    correlation = np.corrcoef(np.array(numbers), rowvar=False)
    lagged = np.corrcoef(np.array(numbers)[1:, 0], np.array(numbers)[:-1, 0])[0, 1]
    assert np.abs(correlation - np.eye(6)).max() < 0.08 and abs(lagged) < 0.08
    assert np.abs(np.array(numbers).mean(0) - 0.5).max() < 0.03


# --- pixels of a crop


def folded(index, side):
    """Reflect an index at both ends, step by step."""
    while not 0 <= index < side:
        index = -1 - index if index < 0 else 2 * side - 1 - index
    return index


def plain_crop(array, position, size, mirror):
    """Compute each pixel separately; return the values, and whether each is safely inside one source pixel."""
    cos, sin = np.cos(position.angle), np.sin(position.angle)
    out, safe = np.zeros((*size, *array.shape[2:]), np.uint8), np.zeros(size, bool)
    for i in range(size[0]):
        for j in range(size[1]):
            down, right = i + 0.5 - size[0] / 2, j + 0.5 - size[1] / 2
            y = position.centre[0] + position.zoom * (cos * down + sin * right)
            x = position.centre[1] + position.zoom * (-sin * down + cos * right)
            row, column = int(np.floor(y)), int(np.floor(x))
            safe[i, j] = min(y - row, row + 1 - y, x - column, column + 1 - x) > 0.02
            if mirror:
                out[i, j] = array[folded(row, array.shape[0]), folded(column, array.shape[1])]
            elif 0 <= row < array.shape[0] and 0 <= column < array.shape[1]:
                out[i, j] = array[row, column]
            else:
                out[i, j] = IGNORE
    return out, safe


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(5, 50), st.integers(5, 50)),
    st.sampled_from(['ignore', 'mirror']),
    st.floats(0.4, 1.9),
    st.floats(0, 6.28),
)
def test_labels_of_a_crop_match_a_plain_loop(prepared, seed, size, shape, border, zoom, angle):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 16, shape).astype(np.uint8)
    cutter = stream(prepared, crop_size=size, border=border, rotation='any')
    position = CropPosition(0, -1, (0, 0), tuple(rng.uniform(0, shape)), zoom, angle, resampled=True)
    expected, safe = plain_crop(labels, position, size, border == 'mirror')
    np.testing.assert_array_equal(cutter._cut(labels, position)[safe], expected[safe])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(5, 30), st.integers(5, 30)),
    st.integers(0, 3),
)
def test_quarter_turns_move_whole_pixels(prepared, seed, size, shape, turns):
    """Without interpolation, image and labels match the plain loop pixel by pixel."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    cutter = stream(prepared, crop_size=size, border='mirror', rotation='quarter')
    half = np.array(size if turns % 2 == 0 else size[::-1]) / 2
    centre = rng.integers(0, shape) + half % 1  # aligned with whole pixels
    position = CropPosition(0, -1, (0, 0), tuple(centre), 1.0, turns * np.pi / 2)
    expected, _ = plain_crop(image, position._replace(centre=tuple(centre + 1e-6)), size, True)
    np.testing.assert_array_equal(cutter._cut(image, position), expected)
    np.testing.assert_array_equal(cutter._cut(np.ascontiguousarray(image[..., 0]), position), expected[..., 0])


@pytest.mark.parametrize('zoom', [0.6, 1.0, 1.4])
def test_images_are_interpolated_linearly(prepared, zoom):
    """The image is smooth, with known values between pixels."""

    def light(y, x):
        return 127 + 60 * np.sin(y / 9) + 50 * np.cos(x / 11)

    y, x = np.mgrid[:120, :130] + 0.5
    image = np.repeat(np.rint(light(y, x)).astype(np.uint8)[..., None], 3, 2)
    rng = np.random.default_rng()
    for _ in range(5):
        cutter = stream(prepared, crop_size=(30, 34), rotation='any')
        position = CropPosition(0, -1, (0, 0), tuple(rng.uniform(50, 70, 2)), zoom, rng.uniform(0, 6.28), True)
        offsets = np.stack(np.mgrid[:30, :34] + 0.5, -1) - np.array([15, 17])
        source = np.array(position.centre) + zoom * offsets @ _turn(position.angle).T
        difference = cutter._cut(image, position).astype(float) - light(source[..., 0], source[..., 1])[..., None]
        # OpenCV rounds positions to 1/32 px: all pixels may share up to 1/64 px, at slopes up to 6.7 and 4.5.
        assert np.abs(difference).max() < 2 and abs(difference.mean()) < (60 / 9 + 50 / 11) / 64 + 0.05


def test_coarse_crops_average_instead_of_subsampling(prepared):
    """A fine chequerboard becomes grey instead of aliasing."""
    board = np.repeat((np.indices((200, 200)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    position = CropPosition(0, -1, (0, 0), (100.0, 100.0), 4.0, 0.3, resampled=True)
    crop = stream(prepared, crop_size=(30, 30), rotation='any')._cut(board, position)
    assert np.abs(crop.astype(int) - 127).max() <= 2


def test_crops_equal_windows_of_the_arrays(prepared):
    """The data set returns BGR, and labels of the same window."""
    source = dataset(prepared, crop_size=(40, 30), rotation='quarter', class_probability=0.3)
    for n in range(40):
        sample = source[(3, n)]
        image, labels = np.load(image_path(prepared, sample['roi'])), np.load(label_path(prepared, sample['roi']))
        turn = round(sample['crop'].angle / (np.pi / 2))
        picture, mask = np.rot90(sample['img'][..., ::-1], -turn), np.rot90(sample['gt_seg_map'], -turn)
        half = np.array(mask.shape) / 2
        y, x = np.floor(np.array(sample['crop'].centre) - half + 0.5).astype(int)
        window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
        np.testing.assert_array_equal(picture, image[window])
        np.testing.assert_array_equal(mask, labels[window])
        assert sample['img'].flags.c_contiguous and sample['img_shape'] == (40, 30) == sample['gt_seg_map'].shape


@pytest.mark.parametrize('rotation', ['none', 'quarter', 'any'])
def test_a_crop_of_another_size_equals_that_of_a_stream_of_this_size(prepared, rotation):
    settings = dict(um_per_px=(0.4, 0.7), rotation=rotation)
    one, other = dataset(prepared, crop_size=(40, 44), **settings), dataset(prepared, crop_size=(20, 26), **settings)
    for n in range(30):
        assert_same(one[(3, n, (20, 26))], other[(3, n)])
        assert one[(3, n)]['img'].shape == (40, 44, 3)


def test_sampler_gives_each_crop_its_current_size(prepared):
    sampler = CropStreamSampler(dataset(prepared), seed=4)
    sampler.sizes = [(0, (8, 8)), (3, (9, 7)), (5, None)]
    keys = iter(sampler)
    assert [next(keys) for _ in range(7)] == [
        (4, 0, (8, 8)), (4, 1, (8, 8)), (4, 2, (8, 8)), (4, 3, (9, 7)), (4, 4, (9, 7)), (4, 5), (4, 6)
    ]  # fmt: skip
    sampler.skip(4)
    assert next(iter(sampler)) == (4, 4, (9, 7))


@pytest.mark.parametrize('rotation', ['none', 'quarter', 'any'])
def test_rois_smaller_than_the_crop_are_padded(prepared, rotation):
    """Beyond the ROI labels are 255 and the image is mirrored; no pixel of an ROI that fits is lost."""
    source = stream(prepared, crop_size=(200, 210), rotation=rotation)
    for n in range(12):
        crop = source.read(0, n)
        entry = crop['entry']
        assert crop['img'].shape == (200, 210, 3)
        assert (crop['gt_seg_map'] == IGNORE).sum() >= 200 * 210 - entry['height'] * entry['width'] - 600
        counts = count_classes(crop['gt_seg_map'])
        if rotation != 'any':
            assert counts.tolist() == entry['pixels']
        else:
            assert np.abs(counts - entry['pixels']).max() < 200
        assert (crop['img'].reshape(-1, 3).max(1) > 0).all()


def test_context_reaches_beyond_the_roi_with_ignored_labels(prepared):
    """The image has real tissue around the ROI; only pixels of the ROI are annotated."""
    source = stream(prepared, crop_size=(150, 150), use_context=True)
    for n in range(12):
        crop = source.read(0, n)
        entry = crop['entry']
        image, labels = (np.load(p(prepared, entry['name'] + '_with_context')) for p in (image_path, label_path))
        y, x = np.floor(np.array(crop['position'].centre) - 75 + 0.5).astype(int)
        np.testing.assert_array_equal(crop['img'][..., ::-1], image[y : y + 150, x : x + 150])
        np.testing.assert_array_equal(crop['gt_seg_map'], labels[y : y + 150, x : x + 150])
        outside = np.ones(labels.shape, bool)
        top, left = entry['context']['origin']
        outside[top : top + entry['height'], left : left + entry['width']] = False
        assert outside[y : y + 150, x : x + 150].any()
        assert (crop['gt_seg_map'][outside[y : y + 150, x : x + 150]] == IGNORE).all()


# --- resampling


@pytest.mark.parametrize('um_per_px, rotation', [((0.4, 0.7), 'any'), ((0.4, 0.7), 'none'), (None, 'any')])
def test_resampled_fraction_is_the_probability(prepared, um_per_px, rotation):
    """The default is 0.3; 0 and 1 hold without exception."""
    settings = dict(crop_size=(16, 16), um_per_px=um_per_px, rotation=rotation)
    for arguments, expected in ((dict(), 0.3), (dict(resample_probability=0.75), 0.75)):
        source = stream(prepared, **settings, **arguments)
        positions = [source.sample(philox(9, n)) for n in range(4000)]
        found = np.mean([p.resampled for p in positions])
        assert abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)
        classes = [p.train_id >= 0 for p in positions]  # independent of the class
        assert abs(np.corrcoef(classes, [p.resampled for p in positions])[0, 1]) < 0.08
    for share in (0, 1):
        source = stream(prepared, **settings, resample_probability=share)
        assert {source.sample(philox(9, n)).resampled for n in range(200)} == {bool(share)}


@pytest.mark.parametrize('rotation', ['none', 'quarter', 'any'])
def test_crops_that_are_not_resampled_have_unchanged_pixels(prepared, rotation):
    """Find each crop in the array by trying every position and every quarter turn."""
    source = stream(prepared, crop_size=(20, 26), um_per_px=(0.3, 0.9), rotation=rotation, class_probability=0.5)
    turns, resampled = set(), 0
    for n in range(30):
        crop = source.read(1, n)
        if crop['position'].resampled:
            resampled += 1
            continue
        name = crop['entry']['name']
        image, labels = np.load(image_path(prepared, name)), np.load(label_path(prepared, name))
        found = []
        for turn in range(4):
            picture = np.ascontiguousarray(np.rot90(crop['img'][..., ::-1], -turn))
            mask = np.rot90(crop['gt_seg_map'], -turn)
            windows = np.lib.stride_tricks.sliding_window_view(labels, mask.shape)
            for y, x in np.argwhere((windows[:, :, ::7, ::7] == mask[::7, ::7]).all((2, 3))):
                window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
                if (image[window] == picture).all() and (labels[window] == mask).all():
                    found.append(turn)
        assert len(found) == 1, n
        turns.add(found[0])
    assert 0 < resampled < 20 and turns == ({0} if rotation == 'none' else {0, 1, 2, 3})


def test_probability_has_no_effect_without_resampling_settings(prepared):
    for rotation in ('none', 'quarter'):
        plain = stream(prepared, crop_size=(16, 16), rotation=rotation, resample_probability=0.0)
        other = stream(prepared, crop_size=(16, 16), rotation=rotation, resample_probability=1.0)
        for n in range(30):
            assert_same(plain.read(3, n), other.read(3, n))
            assert not plain.read(3, n)['position'].resampled


def test_a_resampled_stream_depends_only_on_seed_and_number(prepared):
    """Read in any order, from another stream object."""
    settings = dict(crop_size=(24, 24), um_per_px=(0.4, 0.7), rotation='any')
    forwards = [stream(prepared, **settings).read(11, n) for n in range(20)]
    source = stream(prepared, **settings)
    backwards = [source.read(11, n) for n in reversed(range(20))][::-1]
    for crop, other in zip(forwards, backwards):
        assert_same(crop, other)
    assert {c['position'].resampled for c in forwards} == {False, True}


# --- distribution


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(['none', 'quarter', 'any']),
    st.sampled_from(['ignore', 'mirror']),
    st.booleans(),
    st.tuples(st.integers(2, 130), st.integers(2, 130)),
    st.sampled_from([None, (0.3, 1.2)]),
)
def test_the_sampled_class_is_in_the_crop(prepared, seed, rotation, border, use_context, size, um_per_px):
    source = stream(
        prepared, crop_size=size, class_probability=1.0, rotation=rotation, border=border, use_context=use_context,
        um_per_px=um_per_px,
    )  # fmt: skip
    for n in range(5):
        position = source.sample(philox(seed, n))
        offset = _turn(position.angle).T @ (np.array(position.anchor) + 0.5 - position.centre) / position.zoom
        assert (np.abs(offset) <= np.array(size) / 2 + 1e-9).all()
        if position.zoom == 1:  # coarser crops may step over a single pixel
            crop = source.read(seed, n, with_image=False)
            assert crop['position'].train_id in crop['gt_seg_map']


def test_classes_are_sampled_by_tempered_frequency(prepared):
    pixels = np.sum([r['pixels'] for r in read_index(prepared)['rois']], 0)
    for temperature in (0.0, 0.5, 1.0):
        expected = np.where(pixels > 0, 1 / np.maximum(pixels, 1) ** temperature, 0)
        expected /= expected.sum()
        source = stream(prepared, crop_size=(16, 16), class_probability=1.0, temperature=temperature)
        found = np.bincount([source.sample(philox(1, n)).train_id for n in range(4000)], minlength=16) / 4000
        assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / 4000)
        np.testing.assert_allclose(source.class_shares, expected)


def test_rois_of_a_class_are_sampled_by_the_square_root_of_its_pixels(prepared):
    rois = read_index(prepared)['rois']
    source = stream(prepared, crop_size=(16, 16), class_probability=1.0, temperature=0.0)
    positions = [source.sample(philox(2, n)) for n in range(8000)]
    for train_id in range(16):
        weights = np.sqrt([r['pixels'][train_id] for r in rois])
        found = np.bincount([p.roi for p in positions if p.train_id == train_id], minlength=len(rois))
        if found.sum():
            error = np.abs(found / found.sum() - weights / weights.sum()).max()
            assert error < 5 * np.sqrt(0.25 / found.sum())


def test_uniform_sampling_with_mirroring_shows_every_pixel_equally_often(prepared):
    """Count pixels over crops centred on a fine grid: the expectation is exact, at the border too."""
    source = stream(prepared, crop_size=(6, 5), class_probability=0.0, border='mirror', rotation='none')
    numbers = np.arange(9 * 7, dtype=np.uint8).reshape(9, 7)  # each pixel has its own number
    counts = np.zeros(63, int)
    for y in np.arange(0, 9, 0.25) + 0.125:
        for x in np.arange(0, 7, 0.25) + 0.125:
            centre = source._centre((9, 7), np.array(source.crop_size), np.array([y, x]), np.zeros(2), 1.0, 0.0)
            crop = source._cut(numbers, CropPosition(0, -1, (0, 0), tuple(centre), 1.0, 0.0))
            counts += np.bincount(crop.ravel(), minlength=63)
    assert counts.min() == counts.max()


@pytest.mark.parametrize('rotation, share', [('none', 1.0), ('any', 1.0), ('any', 0.3)])
def test_uniform_sampling_keeps_the_pixel_shares(prepared, rotation, share):
    pixels = np.sum([r['pixels'] for r in read_index(prepared)['rois']], 0)
    source = stream(
        prepared, crop_size=(32, 32), class_probability=0.0, border='mirror', rotation=rotation, um_per_px=(0.4, 0.6),
        resample_probability=share,
    )  # fmt: skip
    crops = np.stack([count_classes(source.read(4, n, False)['gt_seg_map']) for n in range(3000)])
    # The standard error of a ratio of sums over independent crops.
    shares = crops.sum(0) / crops.sum()
    error = (crops - crops.sum(1, keepdims=True) * shares).std(0) / crops.sum(1).mean() / np.sqrt(len(crops))
    assert (np.abs(shares - pixels / pixels.sum()) < 4.5 * error + 1e-12).all()


def test_crops_without_annotation_are_sampled_again(prepared):
    source = stream(prepared, crop_size=(8, 8), class_probability=0.0)
    assert all((source.read(0, n, False)['gt_seg_map'] != IGNORE).any() for n in range(500))


def test_resolution_is_log_uniform(prepared):
    source = dataset(prepared, crop_size=(16, 16), um_per_px=(0.25, 1.0), resample_probability=1)
    found = np.array([source.crop(0, n)['um_per_px'] for n in range(600)])
    assert found.min() >= 0.25 - 1e-9 and found.max() <= 1.0 + 1e-9
    assert abs(np.log2(found).mean() + 1) < 0.12 and abs(np.log2(found).std() - 2 / np.sqrt(12)) < 0.08


def test_metainfo_selects_classes(prepared):
    """Other classes are ignored and never sampled."""
    plain = dataset(prepared, crop_size=(32, 32), class_probability=1.0)
    kept = [k for k in range(16) if plain.stream.class_shares[k] > 0][:2]
    metainfo = dict(classes=[CLASSES[k] for k in kept])
    few = dataset(prepared, crop_size=(32, 32), class_probability=1.0, metainfo=metainfo)
    for n in range(40):
        sample = few[(0, n)]
        assert sample['crop'].train_id in kept
        assert set(np.unique(sample['gt_seg_map'])) <= {0, 1, IGNORE}
        assert kept.index(sample['crop'].train_id) in sample['gt_seg_map']


# --- user errors


INVALID = dict(
    crop_size=[(0, 5), (5,), 64, (64.5, 64)],
    class_probability=['0.5', 1.5],
    temperature=[-1],
    um_per_px=[0.5, ('0.4', '0.6'), (0.6, 0.4), (0, 0.4)],
    rotation=['45'],
    border=['white'],
    resample_probability=[1.5, None],
)


@pytest.mark.parametrize(('name', 'value'), [(name, value) for name, values in INVALID.items() for value in values])
def test_invalid_settings_are_refused(prepared, name, value):
    with pytest.raises(IgniteError, match=f'{name} of the crop stream is'):
        dataset(prepared, **{name: value})


@pytest.mark.parametrize('um_per_px', [(400, 625), (0.4, float('inf')), (0.001, 0.5)])
def test_an_impossible_resolution_is_refused_before_the_first_crop(prepared, um_per_px):
    with pytest.raises(IgniteError, match='um/px'):
        dataset(prepared, crop_size=(16, 16), um_per_px=um_per_px)


def test_unknown_settings_list_the_known_ones(prepared):
    with pytest.raises(IgniteError, match='class_prob.*class_probability'):
        dataset(prepared, class_prob=1)
    with pytest.raises(IgniteError, match='LoadIGNITERegion'):
        dataset(prepared, pipeline=[dict(type='mmseg.LoadIGNITERegion')])
    with pytest.raises(IgniteError, match='indices'):
        dataset(prepared, crop_size=(16, 16)).get_subset_([0])


def test_another_sampler_is_refused(prepared):
    with pytest.raises(IgniteError, match='CropStreamSampler'):
        dataset(prepared, crop_size=(16, 16))[0]
    whole = DATASETS.build(dict(type='mmseg.IGNITEDataset', data_root=str(prepared), split='train'))
    with pytest.raises(IgniteError, match='IGNITECropDataset'):
        whole[(0, 1)]


def test_a_missing_array_is_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / 'ignite')
    (tmp_path / 'ignite' / 'points' / 'patient1_he_roi1.npy').unlink()
    with pytest.raises(IgniteError, match='patient1_he_roi1'):
        stream(tmp_path / 'ignite')


def test_windows_equal_padded_arrays():
    """Beyond the array an image is mirrored, however far, and labels are 255."""
    rng = np.random.default_rng(5)
    for _ in range(300):
        array = rng.integers(0, 250, rng.integers(1, 20, 2), dtype=np.uint8)
        first = rng.integers(-40, 40, 2)
        last = first + rng.integers(1, 60, 2)
        rows, columns = (slice(a + 100, b + 100) for a, b in zip(first, last))
        mirrored, constant = np.pad(array, 100, 'symmetric'), np.pad(array, 100, constant_values=255)
        assert np.array_equal(_window(array, first, last, True), mirrored[rows, columns])
        assert np.array_equal(_window(array, first, last, False), constant[rows, columns])
        colour = np.repeat(array[..., None], 3, 2)
        assert np.array_equal(_window(colour, first, last, True)[..., 1], mirrored[rows, columns])
