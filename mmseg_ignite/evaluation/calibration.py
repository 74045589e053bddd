"""Whether probabilities mean what they say: counts by confidence and by entropy, which add up over ROIs."""

import numpy as np

from ..labels import IGNORE
from .confusion import ratio

CONFIDENCE_BINS = 15
ENTROPY_BINS = 20
_BLOCK = 1 << 19
"""Pixels at once: 32 MB of float32 for 16 classes."""


def _bins(values: np.ndarray, count: int) -> np.ndarray:
    """Which of ``count`` equal bins over 0..1, closed below (the last at both ends)."""
    return np.clip((values * count).astype(np.int64), 0, count - 1)


def calibration_counts(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of one ROI.

    Args:
        probabilities: (C, H, W) float, sums over C are 1; NumPy, or torch on the CPU.
        truth: (H, W) uint8, train ids; 255 ignored.

    Returns:
        confidence: (15, 3) float64, for bins of the largest probability: pixels, sum of confidence, right pixels.
        entropy: (20, 2) float64, for bins of the entropy over ln C: pixels, wrong pixels.
    """
    probabilities, truth = np.asarray(probabilities), np.asarray(truth).reshape(-1)
    classes = len(probabilities)
    flat = probabilities.reshape(classes, -1)
    confidence, entropy = np.zeros((CONFIDENCE_BINS, 3)), np.zeros((ENTROPY_BINS, 2))
    for first in range(0, truth.size, _BLOCK):
        labels = truth[first : first + _BLOCK]
        p = flat[:, first : first + _BLOCK].astype(np.float32)
        valid = labels != IGNORE
        if not valid.all():
            p, labels = p[:, valid], labels[valid]
        sure, right = p.max(0), p.argmax(0) == labels
        unsure = -(p * np.log(np.maximum(p, 1e-30))).sum(0) / np.log(max(classes, 2))
        where = _bins(sure, CONFIDENCE_BINS)
        for column, weights in enumerate((None, sure, right)):
            confidence[:, column] += np.bincount(where, weights, CONFIDENCE_BINS)
        where = _bins(unsure, ENTROPY_BINS)
        for column, weights in enumerate((None, ~right)):
            entropy[:, column] += np.bincount(where, weights, ENTROPY_BINS)
    return confidence, entropy


def calibration_scores(confidence: np.ndarray, entropy: np.ndarray) -> dict:
    """Expected calibration error (Guo et al. 2017) and both curves from pooled counts, percent; None in empty bins.

    ``ece`` is the mean over pixels of |accuracy - confidence| of their bin.
    """
    pixels, sure, right = confidence.T
    total = pixels.sum()

    def rows(counts: np.ndarray, **columns: np.ndarray) -> list[dict]:
        return [
            {
                'from': i / len(counts),
                'to': (i + 1) / len(counts),
                'pixels': int(n),
                **{k: float(v[i]) if n else None for k, v in columns.items()},
            }
            for i, n in enumerate(counts)
        ]

    return dict(
        ece=float(100 * np.abs(right - sure).sum() / total) if total else None,
        bins=rows(pixels, confidence=ratio(100 * sure, pixels), accuracy=ratio(100 * right, pixels)),
        entropy=rows(entropy[:, 0], error=ratio(100 * entropy[:, 1], entropy[:, 0])),
    )
