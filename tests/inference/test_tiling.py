"""Tiling compared with brute-force sums over the whole image."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.inference import accumulation, grid, slide_labels, slide_logits, tiling, window_weights

pytestmark = pytest.mark.usefixtures('one_thread')

quick = settings(max_examples=60, deadline=None)


@st.composite
def layouts(draw, largest=40):
    """Draw (image size, crop size, stride) in px, including images smaller than the window."""
    size = tuple(draw(st.integers(1, largest)) for _ in range(2))
    crop = tuple(draw(st.integers(1, largest)) for _ in range(2))
    # At least a quarter of the window, to limit the number of windows.
    stride = tuple(draw(st.integers(max(c // 4, 1), c)) for c in crop)
    return size, crop, stride


def stock_windows(size, crop, stride):
    """Yield (y1, y2, x1, x2) as in mmseg's EncoderDecoder.slide_inference."""
    (h_img, w_img), (h_crop, w_crop), (h_stride, w_stride) = size, crop, stride
    for h_idx in range(max(h_img - h_crop + h_stride - 1, 0) // h_stride + 1):
        for w_idx in range(max(w_img - w_crop + w_stride - 1, 0) // w_stride + 1):
            y2, x2 = min(h_idx * h_stride + h_crop, h_img), min(w_idx * w_stride + w_crop, w_img)
            yield max(y2 - h_crop, 0), y2, max(x2 - w_crop, 0), x2


def pixelwise(windows):
    """Return logits (B, 5, h, w) that depend only on the pixel itself."""
    x = torch.as_tensor(windows)
    x = x if x.shape[1] == 3 and x.shape[3] != 3 or isinstance(windows, torch.Tensor) else x.permute(0, 3, 1, 2)
    r, g, b = x.float().unbind(1)
    return torch.stack([r, g, b, r + g - b, (b - r).abs()], 1)


def positional(windows):
    """Return logits (B, 3, h, w) that depend on the position in the window, like those of a network near borders."""
    h, w = windows.shape[2:]
    ramp = (torch.linspace(0, 1, h)[:, None] + torch.linspace(0, 2, w)).to(windows.device)
    return windows * (1 + ramp) + ramp * windows.mean((1, 2, 3), keepdim=True)


def brute_force(predict, image, classes, crop, stride, weights):
    """Pad every window to the whole image and add, as mmseg does."""
    total, count = (torch.zeros(shape, device=image.device) for shape in ((classes, *image.shape[1:]), image.shape[1:]))
    for y1, y2, x1, x2 in stock_windows(image.shape[1:], crop, stride):
        logits = predict(image[None, :, y1:y2, x1:x2])[0]
        w = window_weights((y2 - y1, x2 - x1), weights).to(image.device)
        pad = (x1, image.shape[2] - x2, y1, image.shape[1] - y2)
        total += torch.nn.functional.pad(logits * w, pad)
        count += torch.nn.functional.pad(w, pad)
    return total / count


def clear(scores):
    """Mask the pixels whose best class leads by more than rounding errors."""
    top = scores.sort(0).values
    return (top[-1] - top[-2] > 1e-4).cpu().numpy()


@quick
@given(layouts())
def test_grid_matches_mmseg(layout):
    rows, columns = (grid(*axis) for axis in zip(*layout))
    assert [(*r, *c) for r in rows for c in columns] == list(stock_windows(*layout))


@given(st.integers(1, 3000), st.integers(1, 700), st.data())
def test_grid_covers_every_pixel(side, crop, data):
    stride = data.draw(st.integers(1, crop))
    windows = grid(side, crop, stride)
    assert windows[0][0] == 0 and windows[-1][1] == side
    assert all(b[0] <= a[1] and a < b for a, b in zip(windows, windows[1:]))
    assert {stop - start for start, stop in windows} == {min(side, crop)}


@pytest.mark.parametrize('bad', [(0, 4, 4), (9, 0, 1), (9, 4, 0), (9, -4, 2), (9, 4.0, 2), (9, 4, True), (9, '4', 2)])
def test_grid_requires_integers_above_0(bad):
    with pytest.raises(IgniteError, match='an integer above 0 was expected'):
        grid(*bad)


def test_strides_that_leave_gaps_are_rejected():
    with pytest.raises(IgniteError, match='stride 5 is larger than the crop size 4'):
        grid(9, 4, 5)


@pytest.mark.parametrize('shape', [(1, 1), (2, 5), (32, 33), (512, 384)])
def test_gaussian_weights(shape):
    weights = window_weights(shape, 'gaussian')
    y, x = np.mgrid[: shape[0], : shape[1]]
    squares = ((y - (shape[0] - 1) / 2) / (shape[0] / 8)) ** 2 + ((x - (shape[1] - 1) / 2) / (shape[1] / 8)) ** 2
    expected = np.exp(-squares / 2)
    np.testing.assert_allclose(weights.numpy(), expected / expected.max(), rtol=2e-5)
    assert weights.min() > 0 and weights.max() == 1 and weights.shape == shape


def test_uniform_and_unknown_weights():
    assert torch.equal(window_weights((3, 4), 'uniform'), torch.ones(3, 4))
    with pytest.raises(IgniteError, match="'uniform', 'gaussian'"):
        window_weights((3, 4), 'hann')


@quick
@given(layouts(), st.integers(1, 9), st.sampled_from(tiling.WEIGHTS), st.integers(0, 2**32 - 1))
def test_pixelwise_predictions_are_reproduced(device, layout, window_batch, weights, seed):
    size, crop, stride = layout
    image = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, *size))).to(device)
    expected = pixelwise(image[None])[0]
    logits = slide_logits(pixelwise, image, 5, crop, stride, window_batch, weights)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    labels = slide_labels(pixelwise, image, 5, crop, stride, window_batch, weights)
    assert labels.dtype == np.uint8 and labels.shape == size
    if weights == 'uniform':  # sums of integers are exact, including ties
        np.testing.assert_array_equal(labels, expected.argmax(0).cpu().numpy())
    else:
        np.testing.assert_array_equal(labels[clear(expected)], expected.argmax(0).cpu().numpy()[clear(expected)])


@quick
@given(layouts(), st.integers(1, 9), st.sampled_from(tiling.WEIGHTS), st.integers(0, 2**32 - 1))
def test_blending_matches_brute_force(device, layout, window_batch, weights, seed):
    size, crop, stride = layout
    image = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, *size)).astype(np.float32)).to(device)
    expected = brute_force(positional, image, 3, crop, stride, weights)
    torch.testing.assert_close(
        slide_logits(positional, image, 3, crop, stride, window_batch, weights), expected, rtol=1e-5, atol=1e-5
    )
    labels = slide_labels(positional, image, 3, crop, stride, window_batch, weights)
    np.testing.assert_array_equal(labels[clear(expected)], expected.argmax(0).cpu().numpy()[clear(expected)])


@pytest.mark.parametrize(
    ('window_batch', 'round_batches', 'sizes'),
    [
        (5, False, [5, 5, 2]),
        (9, False, [9, 3]),
        (5, True, [5, 5, 2]),
        (9, True, [9, 4]),
        (7, True, [7, 7]),
        (99, True, [16]),
    ],
)
@pytest.mark.parametrize('weights', tiling.WEIGHTS)
def test_batches_continue_across_rows(weights, window_batch, round_batches, sizes):
    """Twelve windows in two rows; rounded batches have a power of two windows, at most ``window_batch``."""
    seen, done, image = [], [], torch.rand(3, 30, 70)

    def predict(windows):
        seen.append(len(windows))
        return windows

    options = dict(window_batch=window_batch, weights=weights, on_progress=done.append, round_batches=round_batches)
    labels = slide_labels(predict, image, 3, (20, 20), (10, 10), **options)
    assert seen == sizes and sum(done) == 12 and len(done) == len(sizes)
    np.testing.assert_array_equal(labels, image.argmax(0).numpy())
    torch.testing.assert_close(slide_logits(predict, image, 3, (20, 20), (10, 10), **options), image)


def test_labels_are_written_to_a_tensor():
    image = torch.randint(256, (3, 61, 47))
    out = torch.empty((61, 47), dtype=torch.uint8)
    assert slide_labels(pixelwise, image, 5, (16, 20), (12, 12), out=out) is out
    assert torch.equal(out, pixelwise(image[None])[0].argmax(0).to(torch.uint8))


def test_next_windows_are_read_while_the_network_works():
    """Each prediction waits until the windows of the next batch have been read."""
    changed, read, batches = threading.Condition(), [], []

    class Noting(Reader):
        def __getitem__(self, key):
            with changed:
                read.append(key)
                changed.notify()
            return super().__getitem__(key)

    def predict(windows):
        batches.append(len(windows))
        with changed:
            assert changed.wait_for(lambda: len(read) >= min(4 * (len(batches) + 1), 12), timeout=30)
        return pixelwise(windows)

    slide_labels(predict, Noting(np.zeros((60, 40, 3), np.uint8)), 5, (20, 10), (20, 10), window_batch=4)
    assert batches == [4, 4, 4]


def test_error_of_a_reader_ends_the_prediction():
    class Broken(Reader):
        def __getitem__(self, key):
            if key[0].start:
                raise OSError('tile 7 is damaged')
            return super().__getitem__(key)

    with pytest.raises(OSError, match='tile 7'):
        slide_labels(pixelwise, Broken(np.zeros((40, 40, 3), np.uint8)), 5, (20, 20), (20, 20))


class Reader:
    """A slide reader with a shape and slicing."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.largest = pixels, pixels.shape, 0

    def __getitem__(self, key):
        found = self.pixels[key]
        self.largest = max(self.largest, found.size)
        return found


def test_arrays_are_read_window_by_window(tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (61, 47, 3), dtype=np.uint8)
    np.save(tmp_path / 'image.npy', pixels)
    expected = pixelwise(pixels[None])[0].argmax(0).numpy()
    out = np.lib.format.open_memmap(tmp_path / 'out.npy', 'w+', np.uint8, (61, 47))
    mapped = np.load(tmp_path / 'image.npy', mmap_mode='r')
    assert slide_labels(pixelwise, mapped, 5, (16, 20), (12, 12), out=out) is out
    out.flush()
    np.testing.assert_array_equal(np.load(tmp_path / 'out.npy'), expected)
    reader = Reader(pixels)
    np.testing.assert_array_equal(slide_labels(pixelwise, reader, 5, (16, 20), (12, 12)), expected)
    assert reader.largest == 16 * 20 * 3


def test_windows_of_arrays_are_uint8_stacks():
    seen = set()

    def predict(windows):
        seen.add((type(windows), windows.dtype, windows.shape))
        return pixelwise(windows)

    slide_labels(predict, np.zeros((20, 40, 3), np.uint8), 5, (20, 20), (20, 20))
    assert seen == {(np.ndarray, np.dtype(np.uint8), (2, 20, 20, 3))}


def test_memory_does_not_grow_with_the_height(monkeypatch):
    real, shapes = accumulation.zeros, []
    monkeypatch.setattr(accumulation, 'zeros', lambda shape, device: shapes.append(tuple(shape)) or real(shape, device))
    for height in (40, 400):
        slide_labels(pixelwise, torch.zeros(3, height, 50), 5, (16, 16), (12, 12))
    assert shapes == [(5, 16, 50)] * 2


@pytest.mark.parametrize('as_tensor', [False, True], ids=['bool', 'tensor'])
def test_skipped_windows_are_not_predicted(device, as_tensor):
    image = torch.rand(3, 60, 60, device=device) + 1
    image[:, 10:50, 20:] = 0  # blank; the pixels that are only in blank windows are a part of it
    predicted, done = [], []

    def skip(window):
        blank = (window == 0).all()
        return blank if as_tensor else bool(blank)

    def predict(windows):
        predicted.extend(windows)
        return windows + torch.tensor([0.0, 0, 9], device=device)[:, None, None]

    labels = slide_labels(
        predict, image, 3, (10, 10), (5, 5), window_batch=3, skip=skip, skip_label=7, on_progress=done.append
    )
    windows = list(stock_windows((60, 60), (10, 10), (5, 5)))
    kept = [(a, b, c, d) for a, b, c, d in windows if image[:, a:b, c:d].any()]
    covered = np.zeros((60, 60), bool)
    for y1, y2, x1, x2 in kept:
        covered[y1:y2, x1:x2] = True
    assert len(predicted) == len(kept) < len(windows) == sum(done)
    assert 0 < covered.sum() < covered.size
    np.testing.assert_array_equal(labels, np.where(covered, 2, 7))


@pytest.mark.parametrize('weights', tiling.WEIGHTS)
@pytest.mark.parametrize('as_array', [False, True], ids=['tensor', 'array'])
def test_unwanted_windows_are_neither_read_nor_predicted(device, weights, as_array, monkeypatch):
    """Strips without windows take no memory, and strips with some give what the whole image gives."""
    monkeypatch.setattr(accumulation, 'STRIP', 2)
    rng, size, crop, stride = np.random.default_rng(), (70, 150), (16, 12), (11, 8)
    image = torch.from_numpy(rng.integers(0, 256, (3, *size))).float().to(device)
    chosen = {window for window in stock_windows(size, crop, stride) if window[2] > 70 and rng.random() < 0.4}

    def wanted(rows, columns):
        return (*rows, *columns) in chosen

    total, count = torch.zeros(5, *size, device=device), torch.zeros(size, device=device)
    for y1, y2, x1, x2 in chosen:
        weight = window_weights(crop, weights).to(device)
        total[:, y1:y2, x1:x2] += five(image[None, :, y1:y2, x1:x2])[0] * weight
        count[y1:y2, x1:x2] += weight
    expected, sure = np.where((count > 0).cpu(), total.argmax(0).cpu(), 4), clear(total) | (count == 0).cpu().numpy()
    image = image.byte().permute(1, 2, 0).cpu().numpy() if as_array else image
    reader, done, widths = Reader(image) if as_array else image, [], []
    real = accumulation.zeros
    monkeypatch.setattr(accumulation, 'zeros', lambda shape, where: widths.append(shape[-1]) or real(shape, where))
    settings = dict(weights=weights, wanted=wanted, skip_label=4, on_progress=done.append, device=device)

    def predict(windows):
        return five(torch.from_numpy(windows).permute(0, 3, 1, 2).float().to(device) if as_array else windows)

    labels = slide_labels(predict, reader, 5, crop, stride, 3, **settings)
    assert sum(done) == len(chosen) and set(widths) <= {24, 150 % 24}
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(labels[sure], expected[sure])


def five(windows):
    """Return five channels that depend on the position in the window."""
    scores = positional(windows)
    return torch.cat([scores, scores[:, :2].flip(3)], 1)


@pytest.mark.parametrize('weights', tiling.WEIGHTS)
@pytest.mark.parametrize('probabilities', [False, True])
def test_maps_match_those_of_the_mean_scores(device, weights, probabilities):
    image = torch.rand(3, 50, 61, device=device)

    def predict(windows):
        scores = five(windows) * 3
        scores = scores.softmax(1) if probabilities else scores
        return torch.cat([scores, windows[:, :1]], 1)  # the last channel is the disagreement

    mean = brute_force(predict, image, 6, (16, 20), (12, 13), weights)
    probability = mean[:5] if probabilities else mean[:5].softmax(0)
    entropy = -(probability * probability.log()).sum(0) / np.log(5)
    maps = {
        'probability': [np.empty((50, 61), np.uint8) for _ in range(5)],
        'entropy': torch.empty(50, 61, dtype=torch.uint8, device=device),
        'disagreement': np.empty((50, 61), np.uint8),
    }
    labels = slide_labels(*(predict, image, 5, (16, 20), (12, 13), 3, weights), maps=maps, probabilities=probabilities)
    found = [*map(np.asarray, maps['probability']), maps['entropy'].cpu().numpy(), maps['disagreement']]
    for values, expected in zip(found, [*probability, entropy, mean[5]], strict=True):
        assert np.abs(values - 255 * expected.clamp(0, 1).cpu().numpy()).max() <= 0.51
    np.testing.assert_array_equal(labels[clear(mean[:5])], mean[:5].argmax(0).cpu().numpy()[clear(mean[:5])])


def test_maps_without_windows_are_certain_of_the_skip_label():
    maps = dict(probability=[np.full((9, 9), 3, np.uint8) for _ in range(2)], entropy=np.full((9, 9), 3, np.uint8))
    slide_labels(pixelwise, torch.zeros(3, 9, 9), 2, (4, 4), (4, 4), wanted=lambda *_: False, skip_label=1, maps=maps)
    assert [int(raster.max()) for raster in (*maps['probability'], maps['entropy'])] == [0, 255, 0]


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 3, 5), (16, 40, 700), (256, 9, 11)])
def test_largest_is_the_first_of_equal_scores(device, shape, monkeypatch):
    monkeypatch.setattr(accumulation, '_CACHED', 2000)
    scores = torch.randint(-3, 3, shape).float()  # with many equal scores
    found = accumulation.largest(scores.to(device)).cpu().numpy()
    np.testing.assert_array_equal(found, scores.numpy().argmax(0))


@pytest.mark.parametrize(
    ('maps', 'message'),
    [
        (dict(margin=np.zeros((9, 9), 'u1')), 'the map is'),
        (dict(entropy=np.zeros((9, 8), 'u1')), 'raster of the entropy'),
        (dict(probability=[np.zeros((9, 9), 'u1')] * 4), '4 rasters'),
    ],
)
def test_invalid_maps_are_rejected(maps, message):
    with pytest.raises(IgniteError, match=message):
        slide_labels(pixelwise, torch.zeros(3, 9, 9), 5, (4, 4), (4, 4), maps=maps)


def test_image_with_only_skipped_windows(device):
    def never(windows):
        raise AssertionError('predicted')

    labels = slide_labels(never, torch.zeros(3, 33, 21, device=device), 3, (8, 8), (5, 5), skip=lambda window: True)
    assert labels.shape == (33, 21) and not labels.any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('weights', tiling.WEIGHTS)
def test_half_precision_logits_are_added_in_float32(device, dtype, weights):
    # Sums over windows are not representable in bfloat16 and are rounded in float16.
    image = torch.randint(900, 1100, (3, 24, 24), device=device).to(dtype)
    expected = brute_force(lambda w: w.float(), image, 3, (16, 16), (4, 4), weights)
    logits = slide_logits(lambda w: w, image, 3, (16, 16), (4, 4), weights=weights)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-3)


def test_sums_are_on_the_requested_device(monkeypatch):
    real, devices = accumulation.zeros, []
    monkeypatch.setattr(accumulation, 'zeros', lambda shape, device: devices.append(device) or real(shape, 'cpu'))
    slide_labels(pixelwise, torch.zeros(3, 8, 8), 5, (8, 8), (8, 8), device='cpu')
    slide_labels(pixelwise, torch.zeros(3, 8, 8), 5, (8, 8), (8, 8))
    slide_labels(pixelwise, np.zeros((8, 8, 3), np.uint8), 5, (8, 8), (8, 8))
    assert devices == [torch.device('cpu')] * 3
    with pytest.raises(NotImplementedError, match='meta'):  # tensors without data cannot give labels
        monkeypatch.setattr(accumulation, 'zeros', real)
        slide_labels(pixelwise, torch.zeros(3, 8, 8), 5, (8, 8), (8, 8), device='meta')


@pytest.mark.cuda
@pytest.mark.parametrize('weights', tiling.WEIGHTS)
def test_devices_of_image_and_sums_may_differ(weights):
    image = torch.randn(3, 40, 50)
    expected = brute_force(positional, image, 3, (16, 20), (8, 12), weights)
    settings = (3, (16, 20), (8, 12), 3, weights)
    for logits, where in (
        (slide_logits(positional, image.cuda(), *settings, device='cpu'), 'cpu'),
        (slide_logits(lambda windows: positional(windows.cuda()), image, *settings, device='cuda'), 'cuda'),
    ):
        assert logits.device.type == where
        torch.testing.assert_close(logits.cpu(), expected, rtol=1e-5, atol=1e-5)
    rgb = (255 * torch.rand(40, 50, 3)).to(torch.uint8).numpy()
    for where in ('cpu', 'cuda'):
        labels = slide_labels(lambda w: pixelwise(w).cuda(), rgb, 5, (16, 20), (8, 12), 3, device=where)
        np.testing.assert_array_equal(labels, pixelwise(rgb[None])[0].argmax(0).numpy())


def test_no_gradients_are_kept(device):
    scale = torch.ones(1, requires_grad=True, device=device)
    assert not slide_logits(lambda w: w * scale, torch.rand(3, 9, 9, device=device), 3, (4, 4), (4, 4)).requires_grad


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(classes=0), 'number of classes'),
        (dict(classes=257), 'number of classes'),
        (dict(classes=4), 'prediction has the shape'),
        (dict(window_batch=0), 'window_batch'),
        (dict(stride=(9, 4)), 'larger than the crop size'),
        (dict(weights='other'), 'window weights'),
        (dict(image=torch.zeros(20, 20)), 'image has the shape'),
        (dict(image=np.zeros((0, 20, 3), np.uint8)), 'image has the shape'),
    ],
)
def test_invalid_settings_are_rejected(change, message):
    given = dict(image=torch.zeros(3, 20, 20), classes=3, crop_size=(8, 8), stride=(4, 4)) | change
    for slide in (slide_labels, slide_logits):
        with pytest.raises(IgniteError, match=message):
            slide(lambda windows: windows, **given)


@pytest.mark.parametrize(
    'change',
    [dict(skip_label=256), dict(skip_label=-1), dict(out=np.zeros((20, 20))), dict(out=np.zeros((9, 20), 'u1'))],
)
def test_invalid_label_settings_are_rejected(change):
    with pytest.raises(IgniteError, match='was expected'):
        slide_labels(lambda windows: windows, torch.zeros(3, 20, 20), 3, (8, 8), (4, 4), **change)
