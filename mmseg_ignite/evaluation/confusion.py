"""Confusion matrices of pixels and the scores computed from them.

Rows of a matrix are ground-truth classes, columns predicted classes. An optional column C counts the annotated pixels without
a prediction: they belong to the ground truth of their class and so lower its scores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..labels import IGNORE

PER_CLASS = ('IoU', 'Dice', 'Precision', 'Recall')
FIGURES = ('mIoU', 'mDice', 'aAcc')
"""The scores of folds, strata and paired runs."""
OVERALL = ('mIoU', 'mDice', 'mAcc', 'aAcc', 'mIoU_all_classes', 'mDice_all_classes', 'fwIoU', 'kappa')


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of each pair of ground-truth and predicted class, ignoring pixels whose truth is 255.

    Args:
        truth: Integer train ids 0..C-1, or 255 to ignore the pixel; any shape.
        prediction: Integer train ids of the same shape, 0..C-1 where the truth is not 255.

    Returns:
        (C, C) int64; rows are ground truth, columns prediction.

    Raises:
        ValueError: The shapes differ, or an id is out of range.

    Example:
        >>> confusion_matrix(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0]), classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    matrix, unpredicted = count_pairs(truth, prediction, classes)
    if unpredicted.any():
        raise ValueError(f'the prediction holds ids outside 0..{classes - 1}')
    return matrix


def count_pairs(truth: np.ndarray, prediction: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the :func:`confusion_matrix`, and the pixels (C,) int64 of each class whose prediction is 255."""
    if truth.shape != prediction.shape:
        raise ValueError(f'the truth has shape {truth.shape}, the prediction {prediction.shape}')
    ids = [
        x if x.dtype == np.uint8 else np.where((x >= 0) & (x < IGNORE), x, IGNORE - (x != IGNORE))
        for x in (truth, prediction)
    ]
    codes = (ids[0].astype(np.uint16) << 8) | ids[1].astype(np.uint8)  # counted at once, and checked by their counts
    pairs = np.bincount(codes.ravel(), minlength=1 << 16).reshape(256, 256)
    for what, wrong in (('truth', pairs[classes:IGNORE]), ('prediction', pairs[:classes, classes:IGNORE])):
        if wrong.any():
            raise ValueError(f'the {what} holds ids outside 0..{classes - 1}')
    return pairs[:classes, :classes].copy(), pairs[:classes, IGNORE].copy()


class Marginals(NamedTuple):
    """Pixel counts per class, each (..., C), which add up over ROIs: all that the scores need of a confusion matrix."""

    truth: np.ndarray
    predicted: np.ndarray
    hit: np.ndarray

    @classmethod
    def of(cls, matrices: np.ndarray) -> Marginals:
        """Return the marginals of matrices (..., C, C) or (..., C, C + 1)."""
        predicted = matrices.sum(-2)[..., : matrices.shape[-2]]
        return cls(matrices.sum(-1), predicted, np.diagonal(matrices, axis1=-2, axis2=-1))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide as float64; NaN where the denominator is 0."""
    a, b = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Average along the last axis; NaN if no entry is masked."""
    return ratio(np.where(mask, values, 0).sum(-1), mask.sum(-1))


def score_arrays(pooled: Marginals) -> dict[str, np.ndarray]:
    """Compute all scores of many pooled matrices at once, in percent except kappa; NaN where undefined.

    - Per class, (..., C): ``IoU`` hit / (truth + predicted - hit), ``Dice`` 2 hit / (truth + predicted), ``Precision``
      hit / predicted, ``Recall`` hit / truth.
    - Means over the classes with ground truth, (...): ``mIoU``, ``mDice``, ``mAcc`` (mean Recall). Means over the classes
      with ground truth or prediction, as in mmseg's IoUMetric: ``mIoU_all_classes``, ``mDice_all_classes``.
    - Over pixels, (...): ``aAcc`` sum(hit) / sum(truth); ``fwIoU`` IoU weighted by ground-truth pixels; ``micro_dice``
      2 sum(hit) / (sum(truth) + sum(predicted)); ``kappa`` in -1..1 (Cohen 1960).
    """
    truth, predicted, hit = (np.asarray(x, np.float64) for x in pooled)
    present, either, pixels = truth > 0, truth + predicted, truth.sum(-1)
    iou, dice, recall = ratio(100 * hit, either - hit), ratio(200 * hit, either), ratio(100 * hit, truth)
    accuracy, chance = ratio(hit.sum(-1), pixels), ratio((truth * predicted).sum(-1), pixels**2)
    return dict(
        IoU=iou,
        Dice=dice,
        Precision=ratio(100 * hit, predicted),
        Recall=recall,
        mIoU=_masked_mean(iou, present),
        mDice=_masked_mean(dice, present),
        mAcc=_masked_mean(recall, present),
        mIoU_all_classes=_masked_mean(iou, either > 0),
        mDice_all_classes=_masked_mean(dice, either > 0),
        micro_dice=ratio(200 * hit.sum(-1), pixels + predicted.sum(-1)),
        aAcc=100 * accuracy,
        fwIoU=ratio((truth * np.where(present, iou, 0)).sum(-1), pixels),
        kappa=ratio(accuracy - chance, 1 - chance),
    )


def number(value: float) -> float | None:
    """Convert a score for JSON: None if it is undefined."""
    return float(value) if np.isfinite(value) else None


def scores(confusion: np.ndarray, names: tuple[str, ...]) -> dict:
    """Compute unrounded scores from one pooled matrix, (C, C) or (C, C + 1) int64, and the names of its classes.

    Scores are in percent except kappa (-1..1); see :func:`score_arrays` for the definitions.
    A class without ground-truth pixels is absent: its scores are None, and only the ``*_all_classes`` means include it.
    Pixels predicted as an absent class still lower the scores of the classes that they belong to.

    Returns:
        The scores in ``OVERALL``, ``classes_present`` and ``classes``: {name: {IoU, Dice, Precision, Recall, pixels,
        predicted_pixels}}. Precision is None if the class was never predicted.
    """
    pooled = Marginals.of(confusion)
    found, present = score_arrays(pooled), pooled.truth > 0
    classes = {
        name: {
            **{k: number(found[k][i]) if present[i] else None for k in PER_CLASS},
            'pixels': int(pooled.truth[i]),
            'predicted_pixels': int(pooled.predicted[i]),
        }
        for i, name in enumerate(names)
    }
    return dict({k: number(found[k]) for k in OVERALL}, classes_present=int(present.sum()), classes=classes)
