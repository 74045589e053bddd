"""Colour changes of a batch on a device equal those that OpenCV makes of single images."""

import cv2
import numpy as np
import pytest
import torch

from mmseg_ignite.datasets.transforms import HEDJitter, RandomScannerEffects, RandStainNA
from mmseg_ignite.datasets.transforms.base import ColourChange, apply_changes
from mmseg_ignite.datasets.transforms.scanner import GammaCurve, GaussianBlur, JPEGCompression
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.models.colour_changes import change_batch
from mmseg_ignite.models.jpeg import quantisation

OFF = dict(blur_prob=0, gamma_prob=0, jpeg_prob=0)


def tissue(number, size=(96, 112), seed=0):
    """Return random smooth images in the colours of H&E with glass, (H, W, 3) uint8 BGR."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(number):
        fields = [cv2.GaussianBlur(rng.normal(size=size), (0, 0), sigma) * sigma for sigma in (2, 4, 8)]
        red, green, blue = (0.5 + 0.6 * fields[0], 0.9 + 1.2 * fields[1] + 0.4 * fields[0], 0.4 + 0.5 * fields[2])
        density = np.stack([blue, green, red], 2).clip(0) * (fields[2] > -0.3)[..., None]
        images.append((240 * np.exp(-density) + rng.normal(0, 2, (*size, 3))).clip(0, 255).astype(np.uint8))
    return images


def difference(device, images, changes):
    """Return the absolute difference of a batch on the device from images changed one by one, and the change itself."""
    wanted = np.stack([apply_changes(image, own) for image, own in zip(images, changes)]).astype(int)
    found = change_batch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device), changes)
    assert found.dtype == torch.float32 and found.device.type == device.type
    found = found.permute(0, 2, 3, 1).cpu().numpy()
    return np.abs(wanted - found), np.abs(wanted - np.stack(images)).mean()


# Equal but for rounding: within a grey level, of few pixels. OpenCV blurs with kernels of 8 bits; converts to L*a*b* by
# tables, with errors of up to four levels; and JPEG may round a frequency to another step, which changes its whole block.
@pytest.mark.parametrize(
    ('transform', 'unequal', 'beyond_one', 'largest'),
    [
        (HEDJitter(0.2, 0.05), 0.001, 0, 1),
        (RandomScannerEffects(**{**OFF, 'gamma_prob': 1}), 0.001, 0, 1),
        (RandomScannerEffects(**{**OFF, 'blur_prob': 1}), 0.06, 0, 1),
        (RandomScannerEffects(**{**OFF, 'blur_prob': 1}, blur_sigma=(2, 6)), 0.06, 0, 1),
        (RandStainNA(), 0.3, 0.02, 4),
        (RandomScannerEffects(**{**OFF, 'jpeg_prob': 1}), 0.1, 0.02, 16),
        (RandomScannerEffects(**{**OFF, 'jpeg_prob': 1}, jpeg_quality=(10, 60)), 0.15, 0.04, 40),
    ],
    ids=['hed', 'gamma', 'blur', 'wide blur', 'lab', 'jpeg', 'low quality'],
)
def test_each_change_equals_opencv(device, transform, unequal, beyond_one, largest):
    np.random.seed(7)
    images = tissue(6)
    changes = [transform.draw(dict(img=image)) for image in images]
    found, change = difference(device, images, changes)
    assert change > 0.3  # the images did change
    assert (found > 0).mean() <= unequal
    assert (found > 1).mean() <= beyond_one
    assert found.max() <= largest


def test_a_whole_pipeline_equals_opencv(device):
    np.random.seed(3)
    images = tissue(24, seed=1)
    transforms = [RandStainNA(prob=0.5), HEDJitter(prob=0.8), RandomScannerEffects()]
    changes = [[change for own in transforms for change in own.draw(dict(img=image))] for image in images]
    made = {type(change) for own in changes for change in own}
    assert len(made) == 6  # all five and None
    found, change = difference(device, images, changes)
    assert change > 3 and (found > 1).mean() <= 0.02 and (found > 2).mean() <= 0.005


def test_odd_sizes_and_small_images(device):
    for size in ((33, 47), (5, 9)):
        images = tissue(2, size)
        for change, largest in ((GaussianBlur(4.0), 1), (JPEGCompression(90), 8), (GammaCurve(1.3), 1)):
            found, _ = difference(device, images, [[change], [None]])
            assert found.max() <= largest and found[1].max() == 0, (size, change)


def test_quantisation_tables_are_those_of_opencv():
    for quality in (1, 30, 50, 75, 95, 100):
        stream = cv2.imencode('.jpg', np.zeros((16, 16, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        zigzag = sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
        for number, start in enumerate(at for at in range(len(stream) - 1) if stream[at : at + 2] == b'\xff\xdb'):
            stored = np.zeros((8, 8), int)
            stored[tuple(np.transpose(zigzag))] = list(stream[start + 5 : start + 69])
            assert np.array_equal(stored, quantisation(quality)[number])


def test_black_white_and_bright_colours_stay_in_range(device):
    corners = np.array([[a, b, c] for a in (0, 128, 255) for b in (0, 128, 255) for c in (0, 128, 255)], np.uint8)
    images = [np.repeat(np.repeat(corners.reshape(3, 9, 3), 16, 0), 16, 1)] * 4
    np.random.seed(1)
    changes = [[*RandStainNA().draw(dict(img=tissue(1)[0])), *HEDJitter(0.5, 0.5).draw({})] for _ in images]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device)
    found = change_batch(batch, changes)
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 255 and torch.equal(found, found.round())
    assert torch.equal(change_batch(batch, [[None]] * 4), batch.float())


def test_precision_does_not_depend_on_autocast(device):
    images = torch.from_numpy(np.stack(tissue(2))).permute(0, 3, 1, 2).to(device)
    changes = [[GammaCurve(1.2), GaussianBlur(1.0), JPEGCompression(80)]] * 2
    wanted = change_batch(images, changes)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(change_batch(images, changes), wanted)


@pytest.mark.cuda
def test_the_host_never_waits_for_the_device():
    np.random.seed(3)
    images = tissue(8)
    transforms = [RandStainNA(prob=0.5), HEDJitter(), RandomScannerEffects(0.5, jpeg_prob=0.5)]
    changes = [[change for own in transforms for change in own.draw(dict(img=image))] for image in images]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).cuda()
    change_batch(batch, changes)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('error')
    try:
        change_batch(batch, changes)
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Unknown(ColourChange):
    pass


@pytest.mark.parametrize(
    ('images', 'changes', 'message'),
    [
        (torch.zeros(1, 3, 8, 8), [[None]], r'torch.float32 of shape \(1, 3, 8, 8\)'),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [[None]], 'uint8 BGR'),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [[None], []], r'lengths \[1, 0\]'),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [[Unknown()], [Unknown()]], 'Unknown cannot be applied'),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            [[GammaCurve(1)], [GaussianBlur(1)]],
            'GammaCurve, GaussianBlur cannot',
        ),
    ],
)
def test_what_cannot_be_applied_is_refused(images, changes, message):
    with pytest.raises(IgniteError, match=message):
        change_batch(images, changes)
