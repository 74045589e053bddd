"""ROIs one by one and in strata: the table, the worst of them, and the scores of each organ, scanner, patient."""

from collections.abc import Sequence

import numpy as np

from .confusion import Marginals, figures, number, scores

WORST = 10
NOTHING = 'nothing'
"""The name of the column of pixels without prediction."""
_NO_STRATA = ('roi', 'um_per_px')


def per_roi(matrices: np.ndarray, metadata: 'Sequence[dict]', classes: 'Sequence[str]') -> 'list[dict]':
    """One row an ROI: roi, metadata, annotated_pixels, aAcc, mIoU, mDice, classes_present, 'IoU CLASS' of each class.

    Percent, means over the classes present in the ROI; None where absent. All rows have the same keys.
    """
    pooled = Marginals.of(matrices)
    found = figures(pooled)
    columns = list(dict.fromkeys(key for m in metadata for key in m if key != 'roi'))
    rows = []
    for r, m in enumerate(metadata):
        present = pooled.truth[r] > 0
        rows.append(
            {
                'roi': m['roi'],
                **{key: m.get(key) for key in columns},
                'annotated_pixels': int(pooled.truth[r].sum()),
                **{key: number(found[key][r]) for key in ('aAcc', 'mIoU', 'mDice')},
                'classes_present': int(present.sum()),
                **{f'IoU {n}': number(found['IoU'][r, i]) if present[i] else None for i, n in enumerate(classes)},
            }
        )
    return rows


def worst_first(matrices: np.ndarray, metadata: 'Sequence[dict]') -> 'list[int]':
    """Numbers of the ROIs by ascending mean IoU of their classes; those without annotated pixels last."""
    score = np.nan_to_num(figures(Marginals.of(matrices))['mIoU'], nan=np.inf)
    return sorted(range(len(metadata)), key=lambda r: (score[r], metadata[r]['roi']))


def worst_rois(matrices: np.ndarray, metadata: 'Sequence[dict]', classes: 'Sequence[str]') -> 'list[dict]':
    """Up to ten ROIs by ascending mean IoU of their classes, each with its commonest mistake.

    Returns:
        [{roi, patient, mIoU, aAcc, confused: [truth, predicted, percent of the annotated pixels] or None}].
    """
    found = figures(Marginals.of(matrices))
    names = (*classes, NOTHING)

    def confused(matrix: np.ndarray) -> 'list | None':
        wrong = matrix.copy()
        np.fill_diagonal(wrong[:, : len(classes)], 0)
        truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
        share = float(100 * wrong[truth, predicted] / matrix.sum())
        return [names[truth], names[predicted], share] if share else None

    return [
        dict(
            roi=metadata[r]['roi'],
            patient=metadata[r].get('patient'),
            mIoU=number(found['mIoU'][r]),
            aAcc=number(found['aAcc'][r]),
            confused=confused(matrices[r]),
        )
        for r in worst_first(matrices, metadata)[:WORST]
        if np.isfinite(found['mIoU'][r])
    ]


def strata(matrices: np.ndarray, metadata: 'Sequence[dict]', classes: 'Sequence[str]') -> dict:
    """Scores of the ROIs of each value of each metadata column, pooled: {column: {value: {...}}}.

    Columns that have one value, or another for each ROI, say nothing and are left out, but for ``patient``. An empty value is
    'unknown'.
    """
    result = {}
    columns = dict.fromkeys(key for m in metadata for key in m if key not in _NO_STRATA)
    for column in columns:
        values = [str(v) if (v := m.get(column)) not in (None, '') else 'unknown' for m in metadata]
        if column != 'patient' and len(set(values)) in (1, len(values)):
            continue
        result[column] = {}
        for value in sorted(set(values), key=lambda v: (not v.isdecimal(), int(v) if v.isdecimal() else 0, v)):
            chosen = [r for r, v in enumerate(values) if v == value]
            found = scores(matrices[chosen].sum(0), tuple(classes))
            result[column][value] = dict(
                rois=len(chosen),
                patients=len({metadata[r].get('patient') for r in chosen}),
                pixels=int(matrices[chosen].sum()),
                **{key: found[key] for key in ('mIoU', 'mDice', 'aAcc', 'classes_present')},
            )
    return result
