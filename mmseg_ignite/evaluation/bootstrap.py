"""Confidence intervals of scores: percentile bootstrap over patients (Efron & Tibshirani 1993, chapters 13 and 8).

Pixels and ROIs of one patient are correlated, so patients are the resampling unit: a bootstrap sample draws as many patients
as there are, with replacement, and pools the counts of all their ROIs. ``scipy.stats.bootstrap`` would copy and pool the
counts of each sample; one matrix product of draws and counts per patient gives the same with less time and memory.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import IgniteError
from .confusion import OVERALL, PER_CLASS, Marginals, score_arrays
from .folds import FIGURES

SAMPLES = 10_000
LEVEL = 95
FEW_PATIENTS = 5


def units(metadata: Sequence[dict]) -> tuple[str, list[str]]:
    """Return the resampling unit, 'patient' or (if any patient is unknown) 'ROI', and the unit's name for each ROI."""
    if all(m.get('patient') not in (None, '') for m in metadata):
        return 'patient', [str(m['patient']) for m in metadata]
    return 'ROI', [str(m.get('roi')) for m in metadata]


def sum_by_unit(matrices: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Sum :class:`Marginals` of matrices (R, C, C) by unit: (P, 3 C) float64, exact below 2 ** 53, units sorted by name."""
    order, unit = np.unique(np.asarray(names), return_inverse=True)
    marginals = np.concatenate(Marginals.of(matrices), axis=-1).astype(np.float64)
    sums = np.zeros((len(order), marginals.shape[1]))
    np.add.at(sums, unit.reshape(-1), marginals)
    return sums


def _scores(draws: np.ndarray, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Score samples, given how often each contains each unit (S, P) and the sums of the units (P, 3 C)."""
    pooled = Marginals(*np.split(draws @ sums, 3, axis=-1))
    # A class that is only predicted has an IoU of 0 in the means over all classes, but no score of its own.
    absent = pooled.truth == 0
    return {k: np.where(absent, np.nan, v) if k in PER_CLASS else v for k, v in score_arrays(pooled).items()}


def _resample(
    runs: Sequence[np.ndarray], metadata: Sequence[dict], samples: int, seed: int
) -> tuple[dict, list[np.ndarray], list[dict[str, np.ndarray]]]:
    """Draw the same bootstrap samples for each run.

    Returns:
        The properties of the bootstrap (level, samples, seed, unit, patients and perhaps note); for each run the sums of
        :func:`sum_by_unit`; and for each run the scores of all samples, (S,) or (S, C).
    """
    check_bootstrap(samples, seed)
    unit, names = units(metadata)
    sums = [sum_by_unit(matrices, names) for matrices in runs]
    count = len(sums[0])
    generator = np.random.Generator(np.random.Philox(seed))
    draws = generator.multinomial(count, np.full(count, 1 / count), samples).astype(np.float64)
    about = dict(level=LEVEL, samples=samples, seed=seed, unit=unit, patients=count)
    if unit != 'patient':
        about['note'] = 'patients are unknown, so ROIs were resampled instead: the intervals are too narrow.'
    elif count < FEW_PATIENTS:
        about['note'] = f'only {count} patient{"s" if count != 1 else ""}: the intervals are not reliable.'
    return about, sums, [_scores(draws, s) for s in sums]


def _interval(values: np.ndarray) -> list[float] | None:
    """Return the middle ``LEVEL`` percent of the finite values; None if there are none."""
    values = values[np.isfinite(values)]
    return [float(x) for x in np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])] if len(values) else None


def intervals(
    matrices: np.ndarray,
    metadata: Sequence[dict],
    classes: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
    keys: Sequence[str] = OVERALL,
) -> dict:
    """Compute 95 % intervals of the overall scores and of each class's IoU and Dice, in percent except kappa (-1..1).

    Means are over the classes present in each sample. The interval of a class is over the samples that contain it, so it
    means little if few ``patients`` have the class. Equal seeds draw the same patients, whatever the order of the ROIs and
    the grouping of the classes.

    Args:
        matrices: (R, C, C) or (R, C, C + 1) int64, pixel counts per ROI.
        metadata: R dicts with ``roi`` and ``patient``.
        classes: C names of classes or groups.
        samples: Number of bootstrap samples, at least 100.
        seed: Seed of the draws, 0 or more.
        keys: Scores to return, among the overall ones of :func:`.confusion.score_arrays`.

    Returns:
        level, samples, seed, unit, patients, note (if the intervals are unreliable), ``figures``: {key: [low, high]} and
        ``classes``: {name: {IoU, Dice, patients}}. An interval is None if no sample has the score.

    Raises:
        IgniteError: Fewer than 100 samples, or a negative seed.
    """
    result, (sums,), (found,) = _resample([matrices], metadata, samples, seed)
    patients = (sums[:, : len(classes)] > 0).sum(0)
    result['figures'] = {k: _interval(found[k]) for k in keys}
    result['classes'] = {
        name: {**{k: _interval(found[k][:, i]) for k in ('IoU', 'Dice')}, 'patients': int(patients[i])}
        for i, name in enumerate(classes)
    }
    return result


def check_bootstrap(samples: int, seed: int = 0) -> None:
    """Raise :class:`IgniteError` if there are fewer than 100 samples or the seed is negative."""
    if samples < 100:
        raise IgniteError(f'{samples} bootstrap samples are too few for an interval: use 100 or more.')
    if seed < 0:
        raise IgniteError(f'the seed of the bootstrap is {seed}; 0 or more was expected: choose another.')


def paired(
    a: np.ndarray,
    b: np.ndarray,
    metadata: Sequence[dict],
    classes: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict:
    """Compare two runs on the same ROIs, in the same order, by a paired bootstrap.

    Both runs are scored on the same resampled patients, so variation that they share cancels out.

    Args:
        a, b: (R, C, C) or (R, C, C + 1) int64, pixel counts per ROI.
        metadata, classes, samples, seed: See :func:`intervals`.

    Returns:
        level, samples, seed, unit, patients, perhaps note, and ``figures`` and ``classes`` (IoU): {name: {a, b, difference
        (B - A, percentage points), interval, b_better (percentage of samples, ties count half)}}.

    Raises:
        IgniteError: Fewer than 100 samples, or a negative seed.
    """
    result, sums, found = _resample([a, b], metadata, samples, seed)
    observed = [_scores(np.ones((1, len(s))), s) for s in sums]

    def row(key: str, index: int | tuple = ()) -> dict:
        score_a, score_b = (float(run[key].T[index][0]) for run in observed)
        if not np.isfinite(score_b - score_a):
            return dict.fromkeys(('a', 'b', 'difference', 'interval', 'b_better'))
        change = found[1][key].T[index] - found[0][key].T[index]
        change = change[np.isfinite(change)]
        better = float(100 * np.mean((change > 0) + 0.5 * (change == 0))) if len(change) else None
        return dict(a=score_a, b=score_b, difference=score_b - score_a, interval=_interval(change), b_better=better)

    result['figures'] = {k: row(k) for k in FIGURES}
    result['classes'] = {name: row('IoU', i) for i, name in enumerate(classes)}
    return result
