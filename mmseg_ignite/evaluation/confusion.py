"""Confusion matrices and the scores that follow from them alone. Pure NumPy and OpenCV, exact integers.

A matrix counts pixels, rows ground truth, columns prediction. It may have one column more than rows: the pixels for which
a tool predicted nothing. They count in the row, so they lower every score of their class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from ..labels import IGNORE, histogram

_IDS = np.arange(256)
_PART = 1 << 18
"""Pixels at once."""


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels: (C, C) int64, rows ground truth, columns prediction; pixels of truth 255 are left out.

    Args:
        truth: train ids 0..C-1, 255 ignored, any shape; uint8 is counted fastest.
        prediction: train ids 0..C-1 where the truth is not ignored, the same shape.

    Raises:
        ValueError: shapes differ, or an id is out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f'the truth has shape {truth.shape}, the prediction {prediction.shape}')
    if truth.dtype == prediction.dtype == np.uint8 and classes <= 16 and truth.size:
        return _small(truth.reshape(1, -1), prediction.reshape(1, -1), classes)
    valid = truth != IGNORE
    rows, columns = truth[valid].astype(np.int64), prediction[valid].astype(np.int64)
    for what, ids in (('truth', rows), ('prediction', columns)):
        if ids.size and not 0 <= ids.min() <= ids.max() < classes:
            raise ValueError(f'the {what} holds ids outside 0..{classes - 1}')
    return np.bincount(rows * classes + columns, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def _small(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Up to 16 classes: both ids in one byte, counted by OpenCV, in parts that stay in the cache.

    Ignored pixels become byte 0 and are taken off its count, so the image is never gathered.
    """
    counts = np.zeros(256, np.int64)
    for first in range(0, truth.size, _PART):
        rows, columns = (a[:, first : first + _PART] for a in (truth, prediction))
        inside = cv2.LUT(rows, np.where(_IDS < classes, 255, 0).astype(np.uint8))
        ignored = rows.size - cv2.countNonZero(inside)
        columns = cv2.bitwise_and(columns, inside)
        if int(columns.max()) >= classes:
            raise ValueError(f'the prediction holds ids outside 0..{classes - 1}')
        if ignored and ignored != np.count_nonzero(rows == IGNORE):
            raise ValueError(f'the truth holds ids outside 0..{classes - 1}')
        high = cv2.LUT(rows, np.where(_IDS < classes, 16 * _IDS, 0).astype(np.uint8))
        counts += histogram(cv2.bitwise_or(high, columns))
        counts[0] -= ignored
    return counts.reshape(16, 16)[:classes, :classes].copy()


class Marginals(NamedTuple):
    """All that the scores need of matrices: pixels of each class, (..., C) each.

    They add up over ROIs, so that resampling needs 3 C numbers a patient instead of a matrix.
    """

    truth: np.ndarray
    predicted: np.ndarray
    hit: np.ndarray

    @classmethod
    def of(cls, matrices: np.ndarray) -> Marginals:
        """Of matrices (..., C, C) or, with a column of pixels without prediction, (..., C, C + 1)."""
        classes = matrices.shape[-2]
        hit = np.diagonal(matrices, axis1=-2, axis2=-1)
        return cls(matrices.sum(-1), matrices.sum(-2)[..., :classes], hit)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, NaN where ``whole`` is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole > 0)


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the chosen entries along the last axis, NaN if there is none."""
    return ratio(np.where(chosen, values, 0).sum(-1), chosen.sum(-1))


def figures(pooled: Marginals) -> dict[str, np.ndarray]:
    """All scores of many pooled matrices at once: NaN where undefined, percent but for kappa.

    Per class, (..., C): ``IoU`` hit / (truth + predicted - hit), ``Dice`` 2 hit / (truth + predicted), ``Precision``
    hit / predicted, ``Recall`` hit / truth. Over classes, (...): ``mIoU``, ``mDice``, ``mAcc`` (mean Recall) over the
    classes with ground truth; ``mIoU_all_classes``, ``mDice_all_classes`` over those with ground truth or prediction, as
    mmseg's IoUMetric takes them; ``aAcc`` hit / truth of all pixels; ``fwIoU`` IoU weighted by ground-truth pixels;
    ``micro_dice`` 2 sum(hit) / (sum(truth) + sum(predicted)); ``kappa`` (Cohen 1960), -1..1.
    """
    truth, predicted, hit = (np.asarray(x, np.float64) for x in pooled)
    present, pixels = truth > 0, truth.sum(-1)
    iou, dice = ratio(100 * hit, truth + predicted - hit), ratio(200 * hit, truth + predicted)
    recall = ratio(100 * hit, truth)
    right = ratio(hit.sum(-1), pixels)
    chance = ratio((truth * predicted).sum(-1), pixels**2)
    return dict(
        IoU=iou,
        Dice=dice,
        Precision=ratio(100 * hit, predicted),
        Recall=recall,
        mIoU=_mean(iou, present),
        mDice=_mean(dice, present),
        mAcc=_mean(recall, present),
        mIoU_all_classes=_mean(iou, truth + predicted > 0),
        mDice_all_classes=_mean(dice, truth + predicted > 0),
        micro_dice=ratio(200 * hit.sum(-1), pixels + predicted.sum(-1)),
        aAcc=100 * right,
        fwIoU=ratio((truth * np.where(present, iou, 0)).sum(-1), pixels),
        kappa=ratio(right - chance, 1 - chance),
    )


PER_CLASS = ('IoU', 'Dice', 'Precision', 'Recall')
OVERALL = ('mIoU', 'mDice', 'mAcc', 'aAcc', 'mIoU_all_classes', 'mDice_all_classes', 'fwIoU', 'kappa')


def number(value: float) -> float | None:
    """A figure for JSON: None where it is undefined."""
    return float(value) if np.isfinite(value) else None


def scores(confusion: np.ndarray, names: tuple[str, ...]) -> dict:
    """Scores in percent (kappa -1..1), unrounded, from one pooled matrix (C, C) or (C, C + 1); see :func:`figures`.

    A class without a ground-truth pixel is absent: its scores are None and only the ``*_all_classes`` means know it
    (where it was predicted all the same, those pixels lower the scores of the classes that they belong to).

    Returns:
        dict: the figures of ``OVERALL``, ``classes_present`` and ``classes``: {name: {IoU, Dice, Precision, Recall, pixels,
        predicted_pixels}}. Precision is None where the class was never predicted.
    """
    pooled = Marginals.of(confusion)
    found = figures(pooled)
    present = pooled.truth > 0
    classes = {
        name: {
            **{k: number(found[k][i]) if present[i] else None for k in PER_CLASS},
            'pixels': int(pooled.truth[i]),
            'predicted_pixels': int(pooled.predicted[i]),
        }
        for i, name in enumerate(names)
    }
    return dict(
        **{k: number(found[k]) for k in OVERALL},
        classes_present=int(present.sum()),
        classes=classes,
    )


def table(result: dict) -> str:
    """The per-class table of :func:`scores` as text, with what ``metrics.json`` holds beyond it.

    Classes without ground truth are named as absent, those in neither ground truth nor prediction in one line.
    """
    boundary = result.get('boundary')
    head = f'{"class":<22}{"IoU":>8}{"Dice":>8}{"Acc":>8}' + (f'{"bnd F1":>8}{"NSD":>8}' if boundary else '')
    head += f'{"pixels":>13}'
    lines, rule = [head, '-' * len(head)], '-' * len(head)
    if warning := seen_warning(result):
        lines[:0] = [f'WARNING: {warning}', '']
    for name, row in result['classes'].items():
        figures = [row[key] for key in ('IoU', 'Dice', 'Recall')]
        figures += [boundary['classes'][name][key] for key in ('boundary_F1', 'NSD')] if boundary else []
        if row['IoU'] is not None:
            cells = ''.join(f'{"-" if value is None else format(value, ".2f"):>8}' for value in figures)
            lines.append(f'{name:<22}{cells}{row["pixels"]:>13,}')
        elif row['predicted_pixels']:
            lines.append(f'{name:<22}{"absent":>{8 * len(figures)}}{0:>13}')
    lines.append(rule)
    if result['mIoU'] is None:
        return '\n'.join([*lines, 'no annotated pixel: nothing to score'])
    means = [result[key] for key in ('mIoU', 'mDice', 'mAcc')]
    means += [boundary[key] for key in ('mean_boundary_F1', 'mean_NSD')] if boundary else []
    cells = ''.join(f'{"-" if value is None else format(value, ".2f"):>8}' for value in means)
    lines.append(f'{"mean of " + str(result["classes_present"]) + " present":<22}{cells}')
    return '\n'.join([*lines, *_remarks(result)])


def seen_warning(result: dict) -> str | None:
    """What ``metrics.json`` has to say where the checkpoint has seen patients that it is scored on; None if it has not."""
    if not (seen := set(result.get('seen_patients') or ())):
        return None
    patients = result.get('patients') or len(seen)
    return (
        f'{len(seen)} of {patients} test patients were used to train or to choose this checkpoint; '
        'these scores are too high.'
    )


def _remarks(result: dict) -> Iterator[str]:
    """The lines under the table."""
    if shift := result.get('shift'):
        yield f'the images were shifted as if stained and scanned by another laboratory: {shift}'
    if gone := [name for name, row in result['classes'].items() if not row['pixels'] and not row['predicted_pixels']]:
        yield f'in neither ground truth nor prediction: {", ".join(gone)}'
    kappa = '' if result['kappa'] is None else f', kappa {result["kappa"]:.3f}'
    yield f'pixel accuracy (aAcc) {result["aAcc"]:.2f} %, frequency-weighted IoU {result["fwIoU"]:.2f}{kappa}'
    if boundary := result.get('boundary'):
        yield f'boundary F1 (bnd F1) and normalised surface Dice (NSD) at a tolerance of {boundary["tolerance_um"]:g} um'
    if (ece := (result.get('calibration') or {}).get('ece')) is not None:
        yield f'expected calibration error (ECE) {ece:.2f} %'
    for name, row in result.get('groupings', {}).items():
        if row['mIoU'] is not None:
            yield f'{name}: mIoU {row["mIoU"]:.2f}, mDice {row["mDice"]:.2f}, aAcc {row["aAcc"]:.2f}'
    if intervals := result.get('intervals'):
        ranges = (
            f'{k} {v[0]:.2f}..{v[1]:.2f}'
            for k, v in intervals['figures'].items()
            if k in ('mIoU', 'mDice', 'aAcc') and v is not None
        )
        yield f'{intervals["level"]} % intervals over {intervals["patients"]} {intervals["unit"]}s: {", ".join(ranges)}'
        if 'note' in intervals:
            yield f'note: {intervals["note"]}'
    if folds := result.get('folds'):
        yield from ('', *_fold_lines(folds, result.get('ensemble')))


def _fold_lines(folds: dict, ensemble: dict | None) -> Iterator[str]:
    """The table of the folds of a cross-validation, see :func:`.folds.fold_scores`."""
    keys = ('mIoU', 'mDice', 'aAcc')
    rows = {row['fold']: row for row in folds['rows']} | {'mean': folds['mean'], 'SD': folds['sd']}
    if ensemble:
        rows['ensemble, test part'] = ensemble
    yield f'{"fold":<22}' + ''.join(f'{key:>8}' for key in keys) + f'{"ROIs":>8}{"patients":>10}'
    for name, row in rows.items():
        cells = ''.join(f'{"-" if row[key] is None else format(row[key], ".2f"):>8}' for key in keys)
        yield f'{name:<22}{cells}{row.get("rois") or "":>8}{row.get("patients") or "":>10}'
