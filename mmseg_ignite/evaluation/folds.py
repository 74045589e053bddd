"""Scores of the folds of a cross-validation."""

from collections.abc import Mapping

import numpy as np

FIGURES = ('mIoU', 'mDice', 'aAcc')


def fold_scores(folds: Mapping[str, dict]) -> dict:
    """Collect the scores of the folds with their mean and standard deviation.

    The scores of a fold are pooled over its own ROIs. The mean over folds differs from the score pooled over the ROIs of all
    folds, because every fold has the same weight, however few ROIs or classes it has.

    Args:
        folds: {fold name: contents of ``metrics.json``}.

    Returns:
        ``rows``: [{fold, rois, patients, classes_present, mIoU, mDice, aAcc}], in percent; ``mean`` and ``sd`` (n - 1):
        {mIoU, mDice, aAcc}, None if no fold, or for ``sd`` fewer than two, has the score.
    """
    keys = ('rois', 'patients', 'classes_present', *FIGURES)
    rows = [dict(fold=name, **{key: found[key] for key in keys}) for name, found in folds.items()]
    values = {key: [row[key] for row in rows if row[key] is not None] for key in FIGURES}
    return dict(
        rows=rows,
        mean={key: float(np.mean(v)) if v else None for key, v in values.items()},
        sd={key: float(np.std(v, ddof=1)) if len(v) > 1 else None for key, v in values.items()},
    )
