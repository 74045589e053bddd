"""Confusion matrices and the scores that follow from them alone. Pure NumPy, exact integers."""

import numpy as np

from ..labels import IGNORE


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels: (C, C) int64, rows ground truth, columns prediction; pixels of truth 255 are left out.

    Args:
        truth: train ids, 255 ignored, any shape.
        prediction: train ids 0..C-1, the same shape.
    """
    valid = truth != IGNORE
    pairs = truth[valid].astype(np.int64) * classes + prediction[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(100.0 * part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def scores(confusion: np.ndarray, names: 'tuple[str, ...]') -> dict:
    """Scores in percent, unrounded, from one pooled confusion matrix.

    A class without a ground-truth pixel is absent: its scores are None and no mean counts it (where it was predicted
    all the same, those pixels lower the scores of the classes that they belong to).

    Returns:
        dict: ``mIoU``, ``mDice``, ``mAcc`` (means over the classes present), ``aAcc`` (share of right pixels),
        ``classes_present`` and ``classes``: {name: {IoU, Dice, Precision, Recall, pixels}}. Precision is None where
        the class was never predicted.
    """
    truth, predicted, hit = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    present = truth > 0
    columns = dict(
        IoU=_percent(hit, truth + predicted - hit),
        Dice=_percent(2 * hit, truth + predicted),
        Precision=_percent(hit, predicted),
        Recall=_percent(hit, truth),
    )
    classes = {}
    for i, name in enumerate(names):
        row = {k: float(v[i]) if present[i] and np.isfinite(v[i]) else None for k, v in columns.items()}
        classes[name] = {**row, 'pixels': int(truth[i])}

    def mean(key: str) -> 'float | None':
        return float(columns[key][present].mean()) if present.any() else None

    return dict(
        mIoU=mean('IoU'),
        mDice=mean('Dice'),
        mAcc=mean('Recall'),
        aAcc=float(100.0 * hit.sum() / truth.sum()) if present.any() else None,
        classes_present=int(present.sum()),
        classes=classes,
    )


def table(result: dict) -> str:
    """The per-class table of :func:`scores` as text; absent classes are named as such."""
    lines = [f'{"class":<22}{"IoU":>8}{"Dice":>8}{"Acc":>8}{"pixels":>13}', '-' * 59]
    for name, row in result['classes'].items():
        if row['IoU'] is None:
            lines.append(f'{name:<22}{"absent":>24}{0:>13}')
        else:
            lines.append(f'{name:<22}{row["IoU"]:>8.2f}{row["Dice"]:>8.2f}{row["Recall"]:>8.2f}{row["pixels"]:>13,}')
    lines.append('-' * 59)
    if result['mIoU'] is None:
        return '\n'.join([*lines, 'no annotated pixel: nothing to score'])
    lines.append(
        f'{"mean of " + str(result["classes_present"]) + " present":<22}{result["mIoU"]:>8.2f}'
        f'{result["mDice"]:>8.2f}{result["mAcc"]:>8.2f}'
    )
    lines.append(f'pixel accuracy (aAcc) {result["aAcc"]:.2f} %')
    return '\n'.join(lines)
