"""Split patients, stratified by class and deterministic, and tabulate the parts; see :mod:`..datasets.prepared`."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from rich.table import Column, Table

from ..datasets.prepared import FOLDS, PARTS, Parts, by_name
from ..errors import IgniteError
from ..labels import CLASSES

_SEED, _STARTS = 408, 16
_TOTAL = 1e9  # of each feature in the costs


def make_splits(rois: list[dict]) -> dict[str, Parts]:
    """Split ROIs by every protocol: {protocol: {'train' | 'val' | 'test': ROI names in order}}.

    ``official`` is omitted if the release marks no test rows, fewer than two other patients remain, or a patient is on both
    sides. The folds share the test part of ``official``, or else of ``patient-8-1-1``; they are omitted if fewer than five
    other patients remain.

    ``rois`` are index entries with 'name', 'patient', 'official_split' and 'pixels' (16 counts), in any order. Raise
    IgniteError if they have fewer than three patients.
    """
    rois = sorted(rois, key=lambda r: r['name'])
    patients = {r['patient'] for r in rois}
    if len(patients) < 3:
        raise IgniteError(
            f'the release has {len(patients)} patient(s); a split needs at least three: prepare more ROIs.'
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
    # The folds of the release are not used, as they share patients.
    held_out = splits.get('official', splits['patient-8-1-1'])['test']
    others = {r['name']: r for r in rois if r['name'] not in held_out}
    if len({r['patient'] for r in others.values()}) >= len(FOLDS):
        for fold, val in zip(FOLDS, _divide_rois(list(others.values()), 'patient', (1,) * len(FOLDS))):
            splits[fold] = dict(train=sorted(others.keys() - set(val)), val=val, test=list(held_out))
    return splits


def _divide_rois(rois: list[dict], unit: str, shares: tuple[int, ...]) -> list[list[str]]:
    """Divide ROIs by 'patient' or 'name' so that the pixels of each class and the ROIs approximate the shares."""
    units = {name: row for row, name in enumerate(sorted({r[unit] for r in rois}))}
    features = np.zeros((len(units), len(CLASSES) + 1))
    for roi in rois:
        features[units[roi[unit]]] += [*roi['pixels'], 1]
    part_of = divide(features, shares)
    return [[r['name'] for r in rois if part_of[units[r[unit]]] == part] for part in range(len(shares))]


def divide(features: np.ndarray, shares: tuple[int, ...], seed: int = _SEED) -> np.ndarray:
    """Divide units among parts so that every feature approximates the target shares.

    The cost is the mean relative deviation from the shares over parts and features. A part without a feature that at
    least as many units have as there are parts costs more than all deviations together. The cost is minimised by descents
    from several random starts, and from :func:`_spread` if a part still misses a feature.

    Args:
        features: (units, features) non-negative amounts, e.g. pixels per class and number of ROIs; at least as many
            units as parts.
        shares: target share of each part in small integers, e.g. (8, 1, 1).

    Returns:
        (units,) int part numbers. No part is empty if all units have one feature, such as the number of ROIs.
    """
    costs = _Costs(np.asarray(features, float), shares)
    count, parts = len(features), len(shares)
    sizes = np.maximum(1, np.array(shares) * count // sum(shares))
    sizes[0] = count - sizes[1:].sum()
    rng = np.random.RandomState(seed)  # its stream is frozen; default_rng may change
    starts = [np.repeat(np.arange(parts), sizes)[rng.permutation(count)] for _ in range(_STARTS)]
    best = min((_descend(costs, start) for start in starts), key=costs.total)
    if costs.total(best) >= costs.penalty:
        best = min(best, _descend(costs, _spread(costs.amounts[costs.penalties > 0] > 0, parts)), key=costs.total)
    return best


class _Costs:
    """Costs of the parts of a division.

    Amounts are integer billionths of the feature's total in float64. Their sums are exact in any order, so ties are ties on
    every machine, and the first wins.

    Attributes:
        amounts: (F, U) of each unit; above 0 if the unit has the feature.
        penalties: (F,) cost of a part without the feature; 0 if fewer units have it than there are parts.
    """

    def __init__(self, features: np.ndarray, shares: tuple[int, ...]) -> None:
        features = features[:, features.sum(0) > 0].T
        self.amounts = np.ceil(features / features.sum(1, keepdims=True) * _TOTAL)
        unit = int(np.lcm.reduce(shares))
        self.scale = np.array([sum(shares) * unit // share for share in shares], float)
        self.goal = unit * self.amounts.sum(1)
        # More than all deviations together: each is at most its scaled amount plus its goal, and scale >= unit.
        self.penalty = float(self.scale.sum() * 2 * self.amounts.sum())
        self.penalties = np.where((features > 0).sum(1) >= len(shares), self.penalty, 0.0)

    def sums(self, part_of: np.ndarray) -> np.ndarray:
        """Return the (F, parts) amounts of the parts."""
        return np.stack([self.amounts[:, part_of == part].sum(1) for part in range(len(self.scale))], 1)

    def of(self, part: int, sums: np.ndarray) -> np.ndarray:
        """Return the costs (...) of one part for amounts (F, ...)."""
        column = (-1,) + (1,) * (sums.ndim - 1)
        cost = np.abs(sums * self.scale[part] - self.goal.reshape(column))
        cost += (sums == 0) * self.penalties.reshape(column)
        return cost.sum(0)

    def total(self, part_of: np.ndarray) -> float:
        sums = self.sums(part_of)
        return float(sum(self.of(part, sums[:, part]) for part in range(len(self.scale))))


def _descend(costs: _Costs, part_of: np.ndarray) -> np.ndarray:
    """Descend by the best move of one unit or, if no move helps, the best swap of two."""
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
    """Solve the integer program of a division with as many features as possible in all parts; ``holds`` is (F, U) bool."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    features, units = holds.shape
    # Variables: unit u in part p (units * parts), then feature f missing from part p (features * parts).
    choose = np.hstack([np.kron(np.eye(units), np.ones(parts)), np.zeros((units, features * parts))])
    cover = np.hstack([np.kron(holds, np.eye(parts)), np.eye(features * parts)])
    size = (units + features) * parts
    cost = np.repeat([0.0, 1.0], [units * parts, features * parts])
    rules = dict(bounds=Bounds(0, 1), constraints=[LinearConstraint(choose, 1, 1), LinearConstraint(cover, 1)])
    options = dict(node_limit=10_000)  # a time limit would depend on the machine
    solution = milp(cost, integrality=np.ones(size), options=options, **rules)
    if solution.x is None:
        return np.arange(units) % parts
    return solution.x[: units * parts].reshape(units, parts).argmax(1)


def classes_not_in_all_parts(rois: list[dict], parts: Parts) -> list[str]:
    """Return the classes of at least three patients that are missing from a part."""
    part_of = {name: part for part, names in parts.items() for name in names}
    holders = {c: [r for r in rois if r['pixels'][i]] for i, c in enumerate(CLASSES)}
    common = [c for c in CLASSES if len({r['patient'] for r in holders[c]}) >= 3]
    return [c for c in common if {part_of[r['name']] for r in holders[c] if r['name'] in part_of} != set(parts)]


def split_table(index: dict, protocol: str) -> Table:
    """Tabulate ROIs, patients and megapixels per class and part of one split protocol; '-' means no pixel.

    Classes without pixels have no row; the caption names them.
    """

    def row(name: str, pixels: Iterable[int], **options) -> None:
        table.add_row(name, *(f'{n / 1e6:.3f}' if n else '-' for n in pixels), **options)

    right = (Column(part, justify='right') for part in PARTS)
    table = Table('class', *right, title=f'split {protocol}: megapixels of each class')
    parts = members(index, protocol)
    pixels = part_pixels(parts)
    shown = held_classes(pixels)
    for i in shown:
        row(CLASSES[i], pixels[:, i])
    table.caption = absent_classes(shown) or None
    row('(unannotated)', (sum(r['unannotated'] for r in rois) for rois in parts), end_section=True)
    table.add_row('ROIs', *(str(len(rois)) for rois in parts))
    table.add_row('patients', *(str(count_patients(rois)) for rois in parts))
    return table


def held_classes(pixels: np.ndarray) -> np.ndarray:
    """Return the train ids of the classes with pixels, from counts (..., 16); all classes if there are no pixels."""
    held = pixels.reshape(-1, len(CLASSES)).any(0)
    return np.flatnonzero(held) if held.any() else np.arange(len(CLASSES))


def absent_classes(shown: np.ndarray) -> str:
    """Return a note that names the classes that are not shown; empty if all are."""
    names = [name for i, name in enumerate(CLASSES) if i not in shown]
    return f'not in the data: {", ".join(names)}' if names else ''


def members(index: dict, protocol: str) -> list[list[dict]]:
    """Return the ROI entries of train, val and test."""
    entries = by_name(index)
    return [[entries[name] for name in index['splits'][protocol][part]] for part in PARTS]


def part_pixels(parts: list[list[dict]]) -> np.ndarray:
    """Return the (parts, 16) pixel counts of lists of ROI entries."""
    return np.array([np.sum([r['pixels'] for r in rois], axis=0) for rois in parts])


def count_patients(rois: list[dict]) -> int:
    return len({r['patient'] for r in rois})
