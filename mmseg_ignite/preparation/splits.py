"""Splits by patient, so that no patient stands on both sides.

Whoever splits by ROI lets the network recognise a patient's stain and tissue: the score is then too good.
"""

import numpy as np

from ..errors import IgniteError

PARTS = ('train', 'val', 'test')
PROTOCOLS = ('patient-8-1-1', 'official')
_SEED = 408


def _cost(amounts: np.ndarray, target: np.ndarray, needed: np.ndarray) -> float:
    """How far parts are from their target shares, (P, F) amounts; absent needed features weigh heaviest."""
    shares = amounts / amounts.sum(0)
    return float((np.abs(shares - target[:, None]) / target[:, None]).mean()) + 10.0 * (shares[:, needed] == 0).sum()


def divide_patients(features: np.ndarray, shares: 'tuple[float, ...]', seed: int = _SEED) -> np.ndarray:
    """Divide patients among parts so that every feature comes near the wanted shares.

    Hill climbing over single moves and swaps from several random starts; deterministic by seed.

    Args:
        features: (patients, features) non-negative amounts, e.g. pixels per class and number of ROIs.
        shares: wanted share of each part, e.g. (0.8, 0.1, 0.1).
        seed: of the random starts.

    Returns:
        (patients,) int part numbers; no part is empty.
    """
    count, parts = len(features), len(shares)
    target = np.asarray(shares, float) / sum(shares)
    features = np.asarray(features, float)
    features = features[:, features.sum(0) > 0]
    needed = (features > 0).sum(0) >= parts
    rng = np.random.default_rng(seed)
    best, best_cost = None, np.inf
    sizes = np.maximum(1, np.round(target * count)).astype(int)
    sizes[0] = count - sizes[1:].sum()
    for _ in range(4):
        assignment = np.repeat(np.arange(parts), sizes)[rng.permutation(count)]
        amounts = np.stack([features[assignment == p].sum(0) for p in range(parts)])
        cost = _cost(amounts, target, needed)
        for _ in range(1500):
            changed = rng.choice(count, 1 + rng.integers(2) if count > 1 else 1, replace=False)
            to = assignment[changed[::-1]] if len(changed) == 2 else rng.integers(parts, size=1)
            trial = assignment.copy()
            trial[changed] = to
            if len(np.unique(trial)) < parts:
                continue
            moved = amounts.copy()
            np.subtract.at(moved, assignment[changed], features[changed])
            np.add.at(moved, to, features[changed])
            trial_cost = _cost(moved.round(6), target, needed)
            if trial_cost < cost:
                assignment, amounts, cost = trial, moved, trial_cost
        if cost < best_cost:
            best, best_cost = assignment, cost
    return best


def make_splits(rois: 'list[dict]') -> 'dict[str, dict[str, list[str]]]':
    """Every protocol's parts: {protocol: {'train' | 'val' | 'test': ROI names}}.

    ``patient-8-1-1`` divides the patients 8:1:1; ``official`` keeps the release's test rows and takes a ninth of
    its training patients for validation. ``official`` is left out where the release marks no test rows or where a
    patient stands on both sides.

    Args:
        rois: index entries with 'name', 'patient', 'official_split' and 'pixels' (16 counts).
    """
    patients = sorted({r['patient'] for r in rois})
    if len(patients) < 3:
        raise IgniteError(
            f'the release holds {len(patients)} patient(s); training, validation and test need at least '
            'three: prepare more ROIs.'
        )
    splits = {'patient-8-1-1': _split(rois, patients, PARTS, (8, 1, 1))}
    test = {r['patient'] for r in rois if r['official_split'] == 'test'}
    rest = {r['patient'] for r in rois if r['official_split'] != 'test'}
    if test and len(rest) >= 2 and not test & rest:
        splits['official'] = {
            **_split(rois, sorted(rest), PARTS[:2], (8, 1)),
            'test': [r['name'] for r in rois if r['patient'] in test],
        }
    return splits


def _split(rois: 'list[dict]', patients: 'list[str]', parts: 'tuple[str, ...]', shares: 'tuple[float, ...]') -> dict:
    row = {p: i for i, p in enumerate(patients)}
    features = np.zeros((len(patients), 17))
    for roi in rois:
        if roi['patient'] in row:
            features[row[roi['patient']]] += [*roi['pixels'], 1]
    part_of = divide_patients(features, shares)
    return {
        part: [r['name'] for r in rois if r['patient'] in row and part_of[row[r['patient']]] == number]
        for number, part in enumerate(parts)
    }


def assert_no_leak(rois: 'list[dict]', parts: 'dict[str, list[str]]', where: str) -> None:
    """Raise IgniteError if a patient stands in two parts."""
    patient = {r['name']: r['patient'] for r in rois}
    seen: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if seen.setdefault(patient[name], part) != part:
                raise IgniteError(
                    f'{where}: patient {patient[name]} stands in {seen[patient[name]]} and in {part}: '
                    'the split leaks; prepare the data again.'
                )
