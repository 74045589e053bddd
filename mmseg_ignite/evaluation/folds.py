"""The folds of a cross-validation side by side."""

from collections.abc import Mapping

import numpy as np

FIGURES = ('mIoU', 'mDice', 'aAcc')


def fold_scores(folds: Mapping[str, dict]) -> dict:
    """The scores of each fold, their mean and their standard deviation.

    A fold's score is of its own ROIs, pooled. The mean of the folds therefore differs from the score of the ROIs of all folds
    pooled: a fold with few ROIs or few classes weighs as much as any other.

    Args:
        folds: {name of the fold: its figures, as ``metrics.json`` holds them}.

    Returns:
        dict: ``rows``: [{fold, rois, patients, classes_present, mIoU, mDice, aAcc}], percent; ``mean`` and ``sd`` (of the
        sample, n - 1): {mIoU, mDice, aAcc}, None where no fold, or fewer than two, has the figure.
    """
    keys = ('rois', 'patients', 'classes_present', *FIGURES)
    rows = [dict(fold=name, **{key: found[key] for key in keys}) for name, found in folds.items()]
    values = {key: [row[key] for row in rows if row[key] is not None] for key in FIGURES}
    return dict(
        rows=rows,
        mean={key: float(np.mean(v)) if v else None for key, v in values.items()},
        sd={key: float(np.std(v, ddof=1)) if len(v) > 1 else None for key, v in values.items()},
    )
