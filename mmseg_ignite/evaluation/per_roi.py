"""Scores of parts of a run: single ROIs, the worst ROIs, strata (ROIs that share a metadata value) and folds."""

from collections.abc import Mapping, Sequence

import numpy as np

from .bootstrap import intervals, sum_by_unit, units
from .confusion import FIGURES, Marginals, number, score_arrays, scores

WORST = 10
NOTHING = 'nothing'
"""Name of the column of pixels without a prediction."""
_NO_STRATA = ('roi', 'um_per_px')


def per_roi(matrices: np.ndarray, metadata: Sequence[dict], classes: Sequence[str]) -> list[dict]:
    """Return a table with one row per ROI.

    Columns are roi, the metadata, annotated_pixels, aAcc, mIoU, mDice, classes_present and 'IoU CLASS' of each class. Scores
    are in percent, means are over the classes present in the ROI; None where absent. All rows have the same keys.

    Args:
        matrices: (R, C, C) or (R, C, C + 1) int64, pixel counts per ROI.
        metadata: R dicts with ``roi``.
        classes: C names.
    """
    pooled = Marginals.of(matrices)
    found, present = score_arrays(pooled), pooled.truth > 0
    columns = list(dict.fromkeys(key for m in metadata for key in m if key != 'roi'))
    return [
        {
            'roi': m['roi'],
            **{key: m.get(key) for key in columns},
            'annotated_pixels': int(pooled.truth[r].sum()),
            **{key: number(found[key][r]) for key in ('aAcc', 'mIoU', 'mDice')},
            'classes_present': int(present[r].sum()),
            **{f'IoU {n}': number(found['IoU'][r, i]) if present[r, i] else None for i, n in enumerate(classes)},
        }
        for r, m in enumerate(metadata)
    ]


def holders(matrices: np.ndarray, metadata: Sequence[dict]) -> np.ndarray | None:
    """Count the patients with ground truth of each class: (C,) int64; None if the patient of an ROI is unknown."""
    unit, names = units(metadata)
    return (sum_by_unit(matrices, names)[:, : matrices.shape[-2]] > 0).sum(0) if unit == 'patient' else None


def worst_first(matrices: np.ndarray, metadata: Sequence[dict]) -> list[int]:
    """Return the indices of the ROIs by ascending mIoU; ROIs without annotated pixels are last."""
    score = np.nan_to_num(score_arrays(Marginals.of(matrices))['mIoU'], nan=np.inf)
    return sorted(range(len(metadata)), key=lambda r: (score[r], metadata[r]['roi']))


def commonest_error(matrix: np.ndarray) -> tuple[int, int, float] | None:
    """Return the most frequent confusion in a matrix (C, C) or (C, C + 1); None without errors.

    Returns:
        Ids of the true and the predicted class (C: no prediction), and the percentage of all pixels.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong[:, : len(matrix)], 0)
    if not wrong.any():
        return None
    truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    return int(truth), int(predicted), float(100 * wrong.max() / matrix.sum())


def worst_rois(matrices: np.ndarray, metadata: Sequence[dict], classes: Sequence[str]) -> list[dict]:
    """Return up to ten ROIs with annotated pixels by ascending mIoU; see :func:`per_roi` for the arguments.

    Returns:
        [{roi, patient, mIoU, aAcc, confused}], where ``confused`` is the most frequent error [truth, predicted, percentage of
        the annotated pixels] or None.
    """
    names, rows = (*classes, NOTHING), []
    for r in worst_first(matrices, metadata)[:WORST]:
        found, error = score_arrays(Marginals.of(matrices[r])), commonest_error(matrices[r])
        confused = error and [names[error[0]], names[error[1]], error[2]]
        if np.isfinite(found['mIoU']):
            known = dict(roi=metadata[r]['roi'], patient=metadata[r].get('patient'))
            rows.append({**known, **{key: number(found[key]) for key in ('mIoU', 'aAcc')}, 'confused': confused})
    return rows


def strata(
    matrices: np.ndarray, metadata: Sequence[dict], classes: Sequence[str], samples: int = 0, seed: int = 0
) -> dict:
    """Compute the pooled scores of the ROIs that share a metadata value.

    Columns with a single value, or a different value for each ROI, are omitted, except ``patient``. An empty value becomes
    'unknown'. Intervals resample the patients (or, if unknown, the ROIs) of the stratum only: a stratum of one patient has
    none, and one of fewer than 5 has a ``note``.

    Args:
        matrices, metadata, classes: See :func:`per_roi`.
        samples, seed: See :func:`.bootstrap.intervals`; 0 samples omit the intervals.

    Returns:
        {column: {value: {rois, patients, pixels, mIoU, mDice, aAcc, classes_present, intervals, note}}}.
    """
    result = {}
    for column in dict.fromkeys(key for m in metadata for key in m if key not in _NO_STRATA):
        values = [str(v) if (v := m.get(column)) not in (None, '') else 'unknown' for m in metadata]
        distinct = sorted(set(values), key=lambda v: (not v.isdecimal(), int(v) if v.isdecimal() else 0, v))
        if column == 'patient' or len(distinct) not in (1, len(values)):
            chosen = {value: [r for r, v in enumerate(values) if v == value] for value in distinct}
            result[column] = {
                value: _stratum(matrices[rois], [metadata[r] for r in rois], classes, samples, seed)
                for value, rois in chosen.items()
            }
    return result


def _stratum(matrices: np.ndarray, metadata: list[dict], classes: Sequence[str], samples: int, seed: int) -> dict:
    found = scores(matrices.sum(0), tuple(classes))
    patients = len({m.get('patient') for m in metadata})
    result = dict(rois=len(metadata), patients=patients, pixels=int(matrices.sum()))
    result |= {key: found[key] for key in (*FIGURES, 'classes_present')}
    if samples and len(set(units(metadata)[1])) > 1:
        resampled = intervals(matrices, metadata, classes, samples, seed, FIGURES)
        result['intervals'] = resampled['figures']
        result |= {key: resampled[key] for key in ('note',) if key in resampled}
    return result


def fold_scores(folds: Mapping[str, dict]) -> dict:
    """Collect the scores of the folds of a cross-validation with their mean and standard deviation.

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
