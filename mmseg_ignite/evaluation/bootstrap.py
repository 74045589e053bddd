"""Confidence intervals of scores: percentile bootstrap over patients (Efron & Tibshirani 1993, chapters 13 and 8).

Pixels and ROIs of one patient are correlated, so patients are the resampling unit: a bootstrap sample draws as many patients
as there are, with replacement, and pools the counts of all their ROIs. ``scipy.stats.bootstrap`` would copy and pool the
counts of each sample; matrix products of draws and counts per patient give the same with less time and memory.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import IgniteError
from .confusion import FIGURES, OVERALL, PER_CLASS, Marginals, score_arrays

SAMPLES = 10_000
LEVEL = 95
FEW_PATIENTS = 5
_BLOCK = 1000
"""Number of samples scored at once, which bounds the memory."""


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


def check_bootstrap(samples: int, seed: int = 0) -> None:
    """Raise :class:`IgniteError` if there are fewer than 100 samples or the seed is negative."""
    if samples < 100:
        raise IgniteError(f'{samples} bootstrap samples are too few for an interval: use 100 or more.')
    if seed < 0:
        raise IgniteError(f'the seed of the bootstrap is {seed}; 0 or more was expected: choose another.')


def _scores(draws: np.ndarray, sums: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Score samples, (S,) or (S, C), given how often each contains each unit (S, P) and the sums of the units (P, 3 C)."""
    pooled = Marginals(*np.split(draws @ sums, 3, axis=-1))
    found = score_arrays(pooled)
    # A class that is only predicted has an IoU of 0 in the means over all classes, but no score of its own.
    return {k: np.where(pooled.truth == 0, np.nan, found[k]) if k in PER_CLASS else found[k] for k in keys}


def _resample(
    sums: Sequence[np.ndarray], unit: str, samples: int, seed: int, keys: Sequence[str]
) -> tuple[dict, list[dict[str, np.ndarray]]]:
    """Return the properties of the bootstrap and the scores of the same samples for each run, given its sums by unit."""
    check_bootstrap(samples, seed)
    count = len(sums[0])
    generator, odds = np.random.Generator(np.random.Philox(seed)), np.full(count, 1 / count)
    blocks = []
    for start in range(0, samples, _BLOCK):
        draws = generator.multinomial(count, odds, min(_BLOCK, samples - start)).astype(np.float64)
        blocks.append([_scores(draws, s, keys) for s in sums])
    about = dict(level=LEVEL, samples=samples, seed=seed, unit=unit, patients=count)
    if unit != 'patient':
        about['note'] = 'patients are unknown, so ROIs were resampled instead: the intervals are too narrow.'
    elif count < FEW_PATIENTS:
        about['note'] = f'only {count} patient{"s" if count != 1 else ""}: the intervals are not reliable.'
    return about, [{k: np.concatenate([block.pop(k) for block in run]) for k in keys} for run in zip(*blocks)]


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
        samples, seed: Number of bootstrap samples and seed of the draws, see :func:`check_bootstrap`.
        keys: Scores to return, among the overall ones of :func:`.confusion.score_arrays`.

    Returns:
        level, samples, seed, unit, patients, note (if the intervals are unreliable), ``figures``: {key: [low, high]} and
        ``classes``: {name: {IoU, Dice, patients}}. An interval is None if no sample has the score.
    """
    unit, names = units(metadata)
    sums = sum_by_unit(matrices, names)
    result, (found,) = _resample([sums], unit, samples, seed, (*keys, 'IoU', 'Dice'))
    result['figures'] = {k: _interval(found[k]) for k in keys}
    result['classes'] = {
        name: {**{k: _interval(found[k][:, i]) for k in ('IoU', 'Dice')}, 'patients': int((sums[:, i] > 0).sum())}
        for i, name in enumerate(classes)
    }
    return result


def paired(
    a: np.ndarray,
    b: np.ndarray,
    metadata: Sequence[dict],
    classes: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict:
    """Compare two runs on the same ROIs, in the same order, by a paired bootstrap.

    Both runs are scored on the same resampled patients, so variation that they share cancels out. ``a`` and ``b`` are pixel
    counts like ``matrices`` of :func:`intervals`, as are the other arguments and the errors.

    Returns:
        level, samples, seed, unit, patients, perhaps note, and ``figures`` and ``classes`` (IoU): {name: {a, b, difference
        (B - A, percentage points), interval, b_better (percentage of samples, ties count half)}}.
    """
    unit, names = units(metadata)
    sums, keys = [sum_by_unit(matrices, names) for matrices in (a, b)], (*FIGURES, 'IoU')
    result, found = _resample(sums, unit, samples, seed, keys)
    observed = [_scores(np.ones((1, len(s))), s, keys) for s in sums]

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
