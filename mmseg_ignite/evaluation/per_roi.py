"""ROIs one by one and in strata: the table, the worst of them, and the scores of each organ, scanner, patient."""

from collections.abc import Sequence

import numpy as np

from .bootstrap import COMPARED, intervals, units
from .confusion import Marginals, figures, number, scores

WORST = 10
NOTHING = 'nothing'
"""The name of the column of pixels without prediction."""
_NO_STRATA = ('roi', 'um_per_px')


def per_roi(matrices: np.ndarray, metadata: Sequence[dict], classes: Sequence[str]) -> list[dict]:
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


def holders(matrices: np.ndarray, metadata: Sequence[dict]) -> np.ndarray | None:
    """Number of patients with ground truth of each class: (C,) int64; None where the patient of an ROI is not known."""
    patients = [m.get('patient') for m in metadata]
    if any(p in (None, '') for p in patients):
        return None
    truth, which = Marginals.of(matrices).truth > 0, np.unique(np.array(patients, str), return_inverse=True)[1]
    held = np.zeros((which.max() + 1, truth.shape[1]), bool)
    np.logical_or.at(held, which.reshape(-1), truth)
    return held.sum(0)


def worst_first(matrices: np.ndarray, metadata: Sequence[dict]) -> list[int]:
    """Numbers of the ROIs by ascending mean IoU of their classes; those without annotated pixels last."""
    score = np.nan_to_num(figures(Marginals.of(matrices))['mIoU'], nan=np.inf)
    return sorted(range(len(metadata)), key=lambda r: (score[r], metadata[r]['roi']))


def worst_rois(matrices: np.ndarray, metadata: Sequence[dict], classes: Sequence[str]) -> list[dict]:
    """Up to ten ROIs by ascending mean IoU of their classes, each with its commonest mistake.

    Returns:
        [{roi, patient, mIoU, aAcc, confused: [truth, predicted, percent of the annotated pixels] or None}].
    """
    found = figures(Marginals.of(matrices))
    names = (*classes, NOTHING)

    def confused(matrix: np.ndarray) -> list | None:
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


def strata(
    matrices: np.ndarray, metadata: Sequence[dict], classes: Sequence[str], samples: int = 0, seed: int = 0
) -> dict:
    """Scores of the ROIs of each value of each metadata column, pooled: {column: {value: {...}}}.

    Columns that have one value, or another for each ROI, say nothing and are left out, but for ``patient``. An empty value is
    'unknown'. Intervals draw the patients (or, where these are not known, the ROIs) of the stratum alone; a stratum of one
    patient has none, and one of fewer than 5 has a ``note``.

    Args:
        matrices: (R, C, C) or (R, C, C + 1) int64, of each ROI.
        metadata: of each ROI.
        classes: C names.
        samples, seed: of the bootstrap; 0 samples leave the intervals out.
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
                **{key: found[key] for key in (*COMPARED, 'classes_present')},
                **(
                    _intervals(matrices[chosen], [metadata[r] for r in chosen], classes, samples, seed)
                    if samples
                    else {}
                ),
            )
    return result


def _intervals(matrices: np.ndarray, metadata: list[dict], classes: Sequence[str], samples: int, seed: int) -> dict:
    """``intervals`` of a stratum, {figure: [low, high]}, and the ``note`` on them; nothing for one patient or ROI."""
    if len(set(units(metadata)[1])) < 2:
        return {}
    found = intervals(matrices, metadata, classes, samples, seed, COMPARED)
    return {'intervals': found['figures'], **({'note': found['note']} if 'note' in found else {})}
