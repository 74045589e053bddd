"""Calibration of predicted probabilities: counts by confidence and by entropy that add up over ROIs."""

import numpy as np

from ..labels import IGNORE
from .confusion import ratio

CONFIDENCE_BINS = 15
ENTROPY_BINS = 20
_BLOCK = 1 << 19
"""Pixels processed at once: 32 MB of float32 for 16 classes."""


def _histogram(values: np.ndarray, bins: int, *weights: np.ndarray) -> np.ndarray:
    """Count values in 0..1 and sum each of the weights in equal bins: (bins, 1 + number of weights) float64."""
    index = np.clip((values * bins).astype(np.int64), 0, bins - 1)
    return np.stack([np.bincount(index, w, bins) for w in (None, *weights)], 1)


def calibration_counts(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the annotated pixels of one ROI by confidence and by entropy.

    Args:
        probabilities: (C, H, W) float that sum to 1 over C; NumPy array or CPU tensor.
        truth: (H, W) uint8 train ids, 255 unannotated.

    Returns:
        - confidence: (15, 3) float64; per bin of the largest probability: pixels, sum of confidences, correct pixels.
        - entropy: (20, 2) float64; per bin of the entropy divided by ln C: pixels, wrong pixels.
    """
    classes, truth = len(probabilities), np.asarray(truth).reshape(-1)
    flat = np.asarray(probabilities).reshape(classes, -1)
    confidence, entropy = np.zeros((CONFIDENCE_BINS, 3)), np.zeros((ENTROPY_BINS, 2))
    for first in range(0, truth.size, _BLOCK):
        labels = truth[first : first + _BLOCK]
        p = flat[:, first : first + _BLOCK].astype(np.float32)
        if not (annotated := labels != IGNORE).all():
            p, labels = p[:, annotated], labels[annotated]
        largest, correct = p.max(0), p.argmax(0) == labels
        relative_entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(0) / np.log(max(classes, 2))
        confidence += _histogram(largest, CONFIDENCE_BINS, largest, correct)
        entropy += _histogram(relative_entropy, ENTROPY_BINS, ~correct)
    return confidence, entropy


def calibration_scores(confidence: np.ndarray, entropy: np.ndarray) -> dict:
    """Compute the expected calibration error (Guo et al. 2017) and both curves, in percent, from summed counts.

    Returns:
        ``ece``, the mean over pixels of the |accuracy - confidence| of their bin; ``bins``: [{from, to, pixels, confidence,
        accuracy}]; ``entropy``: [{from, to, pixels, error}]. Values of empty bins are None.
    """
    pixels, confident, correct = confidence.T
    total = pixels.sum()

    def rows(counts: np.ndarray, **columns: np.ndarray) -> list[dict]:
        return [
            {'from': i / len(counts), 'to': (i + 1) / len(counts), 'pixels': int(n)}
            | {k: float(v[i]) if n else None for k, v in columns.items()}
            for i, n in enumerate(counts)
        ]

    return dict(
        ece=float(100 * np.abs(correct - confident).sum() / total) if total else None,
        bins=rows(pixels, confidence=ratio(100 * confident, pixels), accuracy=ratio(100 * correct, pixels)),
        entropy=rows(entropy[:, 0], error=ratio(100 * entropy[:, 1], entropy[:, 0])),
    )
