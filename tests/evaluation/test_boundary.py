import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation.boundary import boundary_counts, boundary_scores, edges


def brute_force(truth, prediction, classes, tolerance, um_per_px):
    """Apply the definition pixel by pixel."""
    height, width = truth.shape
    points = []
    for labels in (truth, prediction):
        found = [[] for _ in range(classes)]
        for y, x in itertools.product(range(height), range(width)):
            if truth[y, x] == 255 or labels[y, x] == 255:
                continue
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < height and 0 <= u < width and truth[v, u] != 255
                if inside and labels[v, u] != labels[y, x]:
                    found[labels[y, x]].append((y, x))
                    break
        points.append(found)
    result = []
    for c in range(classes):
        row = []
        for one, other in ((points[0][c], points[1][c]), (points[1][c], points[0][c])):
            near = [
                any(((y - v) ** 2 + (x - u) ** 2) * um_per_px**2 <= tolerance**2 + 1e-9 for v, u in other)
                for y, x in one
            ]
            row += [len(one), sum(near)]
        result.append(row)
    return np.array(result)


def maps(rng, shape, classes):
    """Return a patchy ground truth with an unannotated part, and a shifted prediction with errors."""
    small = rng.integers(0, classes, [-(-s // 4) for s in shape]).astype(np.uint8)
    truth = np.kron(small, np.ones((4, 4), np.uint8))[: shape[0], : shape[1]]
    prediction = np.roll(truth, rng.integers(-2, 3, 2), (0, 1))
    wrong = rng.random(shape) < 0.05
    prediction = np.where(wrong, rng.integers(0, classes, shape), prediction).astype(np.uint8)
    prediction[rng.random(shape) < 0.02] = 255
    truth = truth.copy()
    y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
    truth[y : y + 5, x : x + 7] = 255
    return truth, prediction


@given(st.integers(0, 2**32), st.sampled_from([(0.5, 0.5), (1.0, 0.5), (2.0, 0.4), (3.3, 0.61), (0.1, 0.5)]))
def test_counts_match_brute_force(seed, lengths):
    rng = np.random.default_rng(seed)
    shape, classes = tuple(rng.integers(1, 22, 2)), int(rng.integers(1, 5))
    truth, prediction = maps(rng, shape, classes)
    np.testing.assert_array_equal(
        boundary_counts(truth, prediction, classes, *lengths), brute_force(truth, prediction, classes, *lengths)
    )


@pytest.mark.parametrize('tolerance_px', [3, 5, 13, 40, 260])
def test_large_maps_match_scipy_distance_transforms(tolerance_px):
    """Tolerances are Pythagorean numbers, so many distances are exactly at the limit."""
    rng = np.random.default_rng()

    def blobs():
        noise = rng.normal(size=(3, 9, 11)).astype(np.float32)
        return np.argmax([cv2.resize(n, (700, 600)) for n in noise], 0).astype(np.uint8)

    truth, prediction = blobs(), blobs()
    truth[:100, :200] = 255
    annotated = truth != 255
    found = boundary_counts(truth, prediction, 3, tolerance_px * 0.4, 0.4)
    for c in range(3):
        one, two = (edges(labels, annotated) & (labels == c) for labels in (truth, prediction))
        far = [ndimage.distance_transform_edt(~mask) for mask in (two, one)]
        expected = [one.sum(), (far[0][one] <= tolerance_px).sum(), two.sum(), (far[1][two] <= tolerance_px).sum()]
        assert list(found[c]) == expected


def test_unannotated_areas_and_the_border_have_no_boundary():
    truth = np.zeros((20, 20), np.uint8)
    truth[5:15, 5:15] = 255
    prediction = np.where(truth == 255, 3, 0).astype(np.uint8)
    assert not boundary_counts(truth, prediction, 4, 1.0, 0.5).any()


def test_shifts_up_to_the_tolerance_are_matched():
    truth = np.repeat(np.arange(40) >= 20, 30).reshape(40, 30).astype(np.uint8)
    prediction = np.roll(truth, 3, 0)
    prediction[:3] = 0
    for tolerance, expected in ((1.4, 0), (1.5, 100), (4.0, 100)):
        found = boundary_scores(boundary_counts(truth, prediction, 3, tolerance, 0.5), ('a', 'b', 'c'), tolerance)
        assert found['classes']['b'] == dict(boundary_F1=expected, NSD=expected)
        assert found['classes']['c'] == dict(boundary_F1=None, NSD=None)
        assert found['mean_NSD'] == expected and found['tolerance_um'] == tolerance


def test_scores_computed_by_hand():
    counts = np.array([[10, 5, 20, 20], [8, 0, 0, 0], [0, 0, 7, 0]])
    found = boundary_scores(counts, ('a', 'b', 'c'), 2.0)
    assert found['classes']['a'] == dict(
        boundary_F1=pytest.approx(200 * 0.5 * 1 / 1.5), NSD=pytest.approx(100 * 25 / 30)
    )
    assert found['classes']['b'] == dict(boundary_F1=0, NSD=0)
    assert found['mean_NSD'] == pytest.approx(100 * 25 / 60)


def test_invalid_lengths_are_rejected():
    labels = np.zeros((3, 3), np.uint8)
    for tolerance in (0, -1, float('nan'), float('inf')):
        with pytest.raises(IgniteError, match='tolerance'):
            boundary_counts(labels, labels, 2, tolerance, 0.5)
    for resolution in (None, 0):
        with pytest.raises(IgniteError, match='patient1_he_roi1 has no um_per_px'):
            boundary_counts(labels, labels, 2, 1, resolution, 'patient1_he_roi1')
