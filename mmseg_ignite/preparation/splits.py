"""Dividing patients into parts, stratified by class and deterministic; see :mod:`mmseg_ignite.datasets.protocols`."""

from itertools import combinations

import numpy as np

from ..datasets.protocols import FOLDS, PARTS, Parts
from ..errors import IgniteError
from ..labels import CLASSES

_SEED, _STARTS = 408, 16
_WHOLE = 1e9  # a feature's total in the costs


def make_splits(rois: list[dict]) -> dict[str, Parts]:
    """Every protocol's parts: {protocol: {'train' | 'val' | 'test': ROI names in order}}.

    ``official`` is left out where the release marks no test rows, fewer than two patients remain beside them, or a
    patient stands on both sides; the folds (whose test part is that of ``official``, else of ``patient-8-1-1``) where
    fewer than five patients remain.

    Args:
        rois: index entries with 'name', 'patient', 'official_split' and 'pixels' (16 counts); their order is of no
            account.

    Raises:
        IgniteError: fewer than three patients.
    """
    rois = sorted(rois, key=lambda r: r['name'])
    patients = {r['patient'] for r in rois}
    if len(patients) < 3:
        raise IgniteError(
            f'the release holds {len(patients)} patient(s); training, validation and test need at least '
            'three: prepare more ROIs.'
        )
    splits = {
        'patient-8-1-1': dict(zip(PARTS, _divide_rois(rois, 'patient', (8, 1, 1)))),
        'roi-8-1-1': dict(zip(PARTS, _divide_rois(rois, 'name', (8, 1, 1)))),
    }
    test = {r['patient'] for r in rois if r['official_split'] == 'test'}
    rest = {r['patient'] for r in rois if r['official_split'] != 'test'}
    if test and len(rest) >= 2 and not test & rest:
        train, val = _divide_rois([r for r in rois if r['patient'] in rest], 'patient', (8, 1))
        splits['official'] = dict(train=train, val=val, test=[r['name'] for r in rois if r['patient'] in test])
    return splits | _folds(rois, splits.get('official', splits['patient-8-1-1'])['test'])


def _folds(rois: list[dict], test: list[str]) -> dict[str, Parts]:
    """Cross-validation outside ``test``. The folds of the release are not used: patients stand in several of them."""
    held_out = set(test)
    rest = [r for r in rois if r['name'] not in held_out]
    if len({r['patient'] for r in rest}) < len(FOLDS):
        return {}
    names = {r['name'] for r in rest}
    folds = _divide_rois(rest, 'patient', (1,) * len(FOLDS))
    return {
        protocol: dict(train=sorted(names - set(val)), val=val, test=list(test)) for protocol, val in zip(FOLDS, folds)
    }


def _divide_rois(rois: list[dict], unit: str, shares: tuple[int, ...]) -> list[list[str]]:
    """Divide ROIs by 'patient' or by 'name', so that the pixels of each class and the ROIs come near the shares."""
    units = {name: row for row, name in enumerate(sorted({r[unit] for r in rois}))}
    features = np.zeros((len(units), len(CLASSES) + 1))
    for roi in rois:
        features[units[roi[unit]]] += [*roi['pixels'], 1]
    part_of = divide(features, shares)
    return [[r['name'] for r in rois if part_of[units[r[unit]]] == part] for part in range(len(shares))]


def divide(features: np.ndarray, shares: tuple[int, ...], seed: int = _SEED) -> np.ndarray:
    """Divide units among parts so that every feature comes near the wanted shares.

    The cost is the mean relative deviation from the shares over parts and features; a part that lacks a feature which
    at least as many units hold as there are parts weighs more than all deviations together. Descents from several
    random starts, and one more from :func:`_spread` where those leave a feature out of a part.

    Args:
        features: (units, features) non-negative amounts, e.g. pixels per class and number of ROIs; at least as many
            units as parts.
        shares: wanted share of each part in small whole numbers, e.g. (8, 1, 1).
        seed: of the random starts.

    Returns:
        (units,) int part numbers. No part is empty if one feature is held by all units, as the number of ROIs is.
    """
    costs = _Costs(np.asarray(features, float), shares)
    count, parts = len(features), len(shares)
    sizes = np.maximum(1, np.array(shares) * count // sum(shares))
    sizes[0] = count - sizes[1:].sum()
    rng = np.random.RandomState(seed)  # its stream is frozen, that of default_rng may change
    starts = [np.repeat(np.arange(parts), sizes)[rng.permutation(count)] for _ in range(_STARTS)]
    best = min((_descend(costs, start) for start in starts), key=costs.total)
    if costs.total(best) >= costs.penalty:
        best = min(best, _descend(costs, _spread(costs.amounts[costs.penalties > 0] > 0, parts)), key=costs.total)
    return best


class _Costs:
    """What the parts of a division cost.

    Amounts are whole billionths of their feature's total, held in float64: their sums are exact in any order, so equal
    costs are equal on every machine and a tie always falls to the first.

    Attributes:
        amounts: (F, U) of each unit; above 0 where the unit holds the feature.
        penalties: (F,) what a part pays for lacking a feature, 0 for one that fewer units hold than there are parts.
    """

    def __init__(self, features: np.ndarray, shares: tuple[int, ...]) -> None:
        features = features[:, features.sum(0) > 0].T
        self.amounts = np.ceil(features / features.sum(1, keepdims=True) * _WHOLE)
        unit = int(np.lcm.reduce(shares))
        self.scale = np.array([sum(shares) * unit // share for share in shares], float)
        self.goal = unit * self.amounts.sum(1)
        # More than all deviations together: none exceeds its scaled amount and its goal, and scale >= unit.
        self.penalty = float(self.scale.sum() * 2 * self.amounts.sum())
        self.penalties = np.where((features > 0).sum(1) >= len(shares), self.penalty, 0.0)

    def sums(self, part_of: np.ndarray) -> np.ndarray:
        """(F, parts) amounts of the parts."""
        return np.stack([self.amounts[:, part_of == part].sum(1) for part in range(len(self.scale))], 1)

    def of(self, part: int, sums: np.ndarray) -> np.ndarray:
        """Cost of one part for amounts of shape (F, ...), as shape (...)."""
        column = (-1,) + (1,) * (sums.ndim - 1)
        cost = np.abs(sums * self.scale[part] - self.goal.reshape(column))
        cost += (sums == 0) * self.penalties.reshape(column)
        return cost.sum(0)

    def total(self, part_of: np.ndarray) -> float:
        sums = self.sums(part_of)
        return float(sum(self.of(part, sums[:, part]) for part in range(len(self.scale))))


def _descend(costs: _Costs, part_of: np.ndarray) -> np.ndarray:
    """Steepest descent by the best move of one unit or, where no move helps, the best swap of two."""
    part_of = part_of.copy()
    while True:
        sums = costs.sums(part_of)
        gain, units, parts = _best_move(costs, part_of, sums)
        if gain >= 0:
            gain, units, parts = _best_swap(costs, part_of, sums)
        if gain >= 0:
            return part_of
        part_of[units] = parts


def _best_move(costs: _Costs, part_of: np.ndarray, sums: np.ndarray) -> tuple[float, list[int], list[int]]:
    parts = range(len(costs.scale))
    now = np.array([costs.of(part, sums[:, part]) for part in parts])
    without = np.empty(len(part_of))
    for part in parts:
        mine = part_of == part
        without[mine] = costs.of(part, sums[:, part, None] - costs.amounts[:, mine]) - now[part]
    gains = np.stack([costs.of(part, sums[:, part, None] + costs.amounts) - now[part] for part in parts]) + without
    gains[part_of, np.arange(len(part_of))] = 0
    part, unit = np.unravel_index(gains.argmin(), gains.shape)
    return gains[part, unit], [unit], [part]


def _best_swap(costs: _Costs, part_of: np.ndarray, sums: np.ndarray) -> tuple[float, list[int], list[int]]:
    best = 0.0, [], []
    for a, b in combinations(range(len(costs.scale)), 2):
        mine, theirs = np.flatnonzero(part_of == a), np.flatnonzero(part_of == b)
        change = costs.amounts[:, None, theirs] - costs.amounts[:, mine, None]
        gains = costs.of(a, sums[:, a, None, None] + change) + costs.of(b, sums[:, b, None, None] - change)
        gains -= costs.of(a, sums[:, a]) + costs.of(b, sums[:, b])
        i, j = np.unravel_index(gains.argmin(), gains.shape) if gains.size else (0, 0)
        if gains.size and gains[i, j] < best[0]:
            best = gains[i, j], [mine[i], theirs[j]], [b, a]
    return best


def _spread(holds: np.ndarray, parts: int) -> np.ndarray:
    """A division that puts as many features as can be in all parts, as an integer program.

    Args:
        holds: (F, U) bool, which unit holds which feature.
        parts: their number.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    features, units = holds.shape
    # Variables: unit u in part p (units * parts), then feature f lacking in part p (features * parts).
    choose = np.hstack([np.kron(np.eye(units), np.ones(parts)), np.zeros((units, features * parts))])
    cover = np.hstack([np.kron(holds, np.eye(parts)), np.eye(features * parts)])
    size = (units + features) * parts
    solution = milp(
        np.r_[np.zeros(units * parts), np.ones(features * parts)],
        integrality=np.ones(size),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(choose, 1, 1), LinearConstraint(cover, 1)],
        options=dict(node_limit=10_000),  # not a time limit, which would make the division depend on the machine
    )
    if solution.x is None:
        return np.arange(units) % parts
    return solution.x[: units * parts].reshape(units, parts).argmax(1)


def classes_not_in_all_parts(rois: list[dict], parts: Parts) -> list[str]:
    """The classes that at least three patients hold and that yet are missing from a part."""
    holders: dict[str, set[str]] = {name: set() for name in CLASSES}
    classes_of = {r['name']: {c for c, pixels in zip(CLASSES, r['pixels']) if pixels} for r in rois}
    for roi in rois:
        for name in classes_of[roi['name']]:
            holders[name].add(roi['patient'])
    held = [set().union(*(classes_of[name] for name in names)) for names in parts.values()]
    return [name for name in CLASSES if len(holders[name]) >= 3 and not all(name in part for part in held)]
