"""How sure a score is: percentile bootstrap over patients (Efron & Tibshirani 1993, chapters 13 and 8).

Pixels of an ROI and ROIs of a patient are alike, so neither is drawn alone: a sample is as many patients as there are,
drawn with replacement, each with all its ROIs, and the figures of their pooled counts.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import IgniteError
from .confusion import OVERALL, PER_CLASS, Marginals, figures

SAMPLES = 10_000
LEVEL = 95
FEW_PATIENTS = 5
_CHUNK = 1000
"""Samples at once: some 10 MB for 16 classes."""
COMPARED = ('mIoU', 'mDice', 'aAcc')


def units(metadata: Sequence[dict]) -> tuple[str, list[str]]:
    """What is drawn, 'patient' or, where any patient is unknown, 'ROI'; and its name for each ROI."""
    if all(m.get('patient') not in (None, '') for m in metadata):
        return 'patient', [str(m['patient']) for m in metadata]
    return 'ROI', [str(m['roi']) for m in metadata]


def note(unit: str, count: int) -> str | None:
    """What a reader of the intervals has to know, None if nothing."""
    if unit != 'patient':
        return 'the patients are not known, so ROIs were drawn instead: the intervals are too narrow.'
    if count < FEW_PATIENTS:
        return f'only {count} patient{"s" if count != 1 else ""}: the intervals are not reliable.'
    return None


def _draws(patients: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each sample holds each patient, (n, P) float64, in chunks."""
    generator = np.random.Generator(np.random.Philox(seed))
    for first in range(0, samples, _CHUNK):
        size = min(_CHUNK, samples - first)
        yield generator.multinomial(patients, np.full(patients, 1 / patients), size).astype(np.float64)


def _by_unit(matrices: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, int]:
    """Marginals summed by unit, (P, 3 C) float64 (exact below 2 ** 53), units in order of their names."""
    order, which = np.unique(np.asarray(names), return_inverse=True)
    flat = np.concatenate(Marginals.of(matrices), axis=-1).astype(np.float64)
    summed = np.zeros((len(order), flat.shape[1]))
    np.add.at(summed, which.reshape(-1), flat)
    return summed, len(order)


def _figures(drawn: np.ndarray, summed: np.ndarray) -> dict[str, np.ndarray]:
    pooled = Marginals(*np.split(drawn @ summed, 3, axis=-1))
    found = figures(pooled)
    absent = (
        pooled.truth == 0
    )  # a class predicted only has an IoU of 0 in the means over all classes, but no score itself
    return {k: np.where(absent, np.nan, v) if k in PER_CLASS else v for k, v in found.items()}


def _interval(values: np.ndarray) -> list[float] | None:
    """The middle LEVEL percent of the samples in which the figure is defined; None if it is in none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return [float(x) for x in np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])]


def intervals(
    matrices: np.ndarray,
    metadata: Sequence[dict],
    classes: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
    keys: Sequence[str] = OVERALL,
) -> dict:
    """95 % intervals of the figures and of each class's IoU and Dice, percent (kappa -1..1).

    Each sample takes its means over the classes present in it. A class's interval is over the samples that hold it, so it
    means little where few ``patients`` do. The same seed gives the same intervals, whatever the order of the ROIs, and
    draws the same patients, so intervals of the classes and of their groups go together.

    Args:
        matrices: (R, C, C) or (R, C, C + 1) int64, pixels of each ROI.
        metadata: of each ROI, with ``roi`` and ``patient``.
        classes: C names, of classes or of groups.
        samples: number of bootstrap samples, at least 100.
        seed: of the draws.
        keys: the figures to give, of those of :func:`.confusion.figures` that are over all classes.

    Raises:
        IgniteError: fewer than 100 samples, or a negative seed.
    """
    check_bootstrap(samples, seed)
    unit, names = units(metadata)
    summed, count = _by_unit(matrices, names)
    parts = [_figures(drawn, summed) for drawn in _draws(count, samples, seed)]
    drawn = {k: np.concatenate([p[k] for p in parts]) for k in (*keys, 'IoU', 'Dice')}
    holders = (summed[:, : len(classes)] > 0).sum(0)
    result = dict(level=LEVEL, samples=samples, seed=seed, unit=unit, patients=count)
    if text := note(unit, count):
        result['note'] = text
    result['figures'] = {k: _interval(drawn[k]) for k in keys}
    result['classes'] = {
        name: {
            **{k: _interval(drawn[k][:, i]) if holders[i] else None for k in ('IoU', 'Dice')},
            'patients': int(holders[i]),
        }
        for i, name in enumerate(classes)
    }
    return result


def check_bootstrap(samples: int, seed: int = 0) -> None:
    """Raise IgniteError if there are too few samples for an interval, or the seed is negative."""
    if samples < 100:
        raise IgniteError(f'{samples} bootstrap samples give no interval: ask for 100 or more.')
    if seed < 0:
        raise IgniteError(f'the seed of the bootstrap is {seed}; 0 or more was expected: choose another.')


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[list[float] | None, float | None]:
    """Interval of B - A and the percentage of samples in which B is better; ties count half."""
    both = (b - a)[np.isfinite(b - a)]
    share = float(100 * np.mean((both > 0) + 0.5 * (both == 0))) if len(both) else None
    return _interval(both), share


def paired(
    a: np.ndarray,
    b: np.ndarray,
    metadata: Sequence[dict],
    classes: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict:
    """Two runs on the same ROIs, in the same order: both are drawn the same patients, so what these share cancels out.

    Returns:
        dict: level, samples, seed, unit, patients, note, and ``figures`` and ``classes`` (IoU): {name: {a, b, difference
        (B - A, percent points), interval, b_better (percent of the samples; 50 for equal runs)}}.

    Raises:
        IgniteError: fewer than 100 samples, or a negative seed.
    """
    check_bootstrap(samples, seed)
    unit, names = units(metadata)
    (first, count), (second, _) = _by_unit(a, names), _by_unit(b, names)
    parts = [[_figures(drawn, s) for s in (first, second)] for drawn in _draws(count, samples, seed)]
    whole = [_figures(np.ones((1, count)), s) for s in (first, second)]

    def row(key: str, i: int | None = None) -> dict:
        at = slice(None) if i is None else (slice(None), i)
        one, two = (float(w[key][at][0]) for w in whole)
        if not np.isfinite(two - one):
            return dict(a=None, b=None, difference=None, interval=None, b_better=None)
        drawn = [np.concatenate([p[which][key][at] for p in parts]) for which in (0, 1)]
        interval, better = _difference(*drawn)
        return dict(a=one, b=two, difference=two - one, interval=interval, b_better=better)

    result = dict(level=LEVEL, samples=samples, seed=seed, unit=unit, patients=count)
    if text := note(unit, count):
        result['note'] = text
    result['figures'] = {k: row(k) for k in COMPARED}
    result['classes'] = {name: row('IoU', i) for i, name in enumerate(classes)}
    return result
