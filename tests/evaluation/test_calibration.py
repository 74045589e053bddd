import math

import numpy as np
import pytest
import torch

from mmseg_ignite.evaluation.calibration import calibration_counts, calibration_scores


def random_maps(rng, shape=(5, 23, 31)):
    probabilities = rng.dirichlet(np.full(shape[0], 0.4), shape[1:]).transpose(2, 0, 1).astype(np.float32)
    return probabilities, rng.choice([*range(shape[0]), 255], shape[1:]).astype(np.uint8)


@pytest.mark.parametrize('kind', [np.asarray, torch.from_numpy])
def test_counts_and_scores_match_a_loop_over_pixels(kind, monkeypatch):
    monkeypatch.setattr('mmseg_ignite.evaluation.calibration._BLOCK', 100)
    rng = np.random.default_rng()
    probabilities, truth = random_maps(rng)
    confidence, entropy = np.zeros((15, 3)), np.zeros((20, 2))
    for y, x in np.ndindex(truth.shape):
        if truth[y, x] == 255:
            continue
        p = probabilities[:, y, x]
        right = p.argmax() == truth[y, x]
        confidence[min(int(p.max() * 15), 14)] += 1, p.max(), right
        relative_entropy = -sum(float(v) * math.log(v) for v in p if v > 0) / math.log(5)
        entropy[min(int(relative_entropy * 20), 19)] += 1, not right
    found = calibration_counts(kind(probabilities), truth)
    np.testing.assert_allclose(found[0], confidence, atol=1e-4)
    np.testing.assert_allclose(found[1], entropy, atol=1)  # a pixel may be on the edge of a bin
    result = calibration_scores(*found)
    n, sure, right = confidence.T
    assert result['ece'] == pytest.approx(
        100 * sum(c / n.sum() * abs(r / c - s / c) for c, s, r in zip(n, sure, right) if c)
    )
    assert [b['pixels'] for b in result['bins']] == list(n)
    full = [i for i in range(15) if n[i]]
    assert [result['bins'][i]['accuracy'] for i in full] == pytest.approx([100 * right[i] / n[i] for i in full])
    assert [b['from'] for b in result['entropy']] == pytest.approx([i / 20 for i in range(20)])


def test_counts_are_additive():
    rng = np.random.default_rng()
    probabilities, truth = random_maps(rng, (4, 20, 30))
    whole = calibration_counts(probabilities, truth)
    parts = [calibration_counts(probabilities[:, s], truth[s]) for s in (slice(0, 7), slice(7, 20))]
    for i in (0, 1):
        np.testing.assert_allclose(parts[0][i] + parts[1][i], whole[i])


def test_calibrated_probabilities_have_no_error():
    rng = np.random.default_rng(0)
    probabilities, _ = random_maps(rng, (3, 200, 300))
    cumulated = probabilities.cumsum(0)
    drawn = (rng.random((200, 300)) > cumulated[:2]).sum(0).astype(np.uint8)
    assert calibration_scores(*calibration_counts(probabilities, drawn))['ece'] < 1
    sure = np.zeros_like(probabilities)
    sure[0] = 1
    assert calibration_scores(*calibration_counts(sure, drawn))['ece'] == pytest.approx(100 * (drawn != 0).mean())


def test_unannotated_roi():
    result = calibration_scores(*calibration_counts(np.ones((2, 3, 3)) / 2, np.full((3, 3), 255, np.uint8)))
    assert result['ece'] is None and result['bins'][0]['accuracy'] is None
