"""How well boundaries agree, at a tolerance: boundary F1 and normalised surface distance.

Definitions, per class c, of both maps alike:

- Only pixels annotated in the truth count, in the prediction too. A boundary pixel of c is one of class c with another class
  on one of its four annotated neighbours. So neither the ROI's border nor that of the unannotated area is a boundary.
- A boundary pixel of one map is matched if the other map has a boundary pixel of c at most ``tolerance`` away (Euclidean,
  between pixel centres, in um).
- Four counts add up over ROIs: boundary pixels of the truth, those matched, boundary pixels of the prediction, those matched.
- Boundary F1 (Csurka et al. 2013) is the harmonic mean of the two matched shares; NSD (Nikolov et al. 2021) is both matched
  counts over both counts, each boundary pixel being one surface element.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from ..errors import IgniteError
from ..labels import IGNORE
from .confusion import number

COUNTS = ('truth', 'truth_matched', 'predicted', 'predicted_matched')


def edges(labels: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """Boundary pixels of all classes: (H, W) bool.

    Args:
        labels: (H, W) ids of any kind.
        annotated: (H, W) bool, pixels that count.
    """
    found = np.zeros(labels.shape, bool)
    for one, other in (((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
                       ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):  # fmt: skip
        differ = (labels[one] != labels[other]) & annotated[one] & annotated[other]
        found[one] |= differ
        found[other] |= differ
    return found


def check_tolerance(tolerance_um: float) -> None:
    """Raise IgniteError unless the tolerance is a length."""
    if not (math.isfinite(tolerance_um) and tolerance_um > 0):
        raise IgniteError(f'the boundary tolerance is {tolerance_um} um; a positive length was expected, e.g. 5.')


def boundary_counts(
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: int,
    tolerance_um: float,
    um_per_px: float | None,
    roi: str = 'ROI',
) -> np.ndarray:
    """The four counts of each class: (C, 4) int64, in the order of ``COUNTS``.

    Args:
        truth: (H, W) uint8, train ids, 255 ignored.
        prediction: (H, W) uint8, train ids; 255 where nothing was predicted, which is a class of its own there.
        tolerance_um: in um.
        um_per_px: resolution, um a pixel.
        roi: its name, for messages.

    Raises:
        IgniteError: no resolution.
    """
    check_tolerance(tolerance_um)
    if not um_per_px or not um_per_px > 0:
        raise IgniteError(f'{roi} has no um_per_px, which a boundary tolerance in um needs: leave the tolerance away.')
    # Squared distances are integers: the largest one allowed, free of rounding (2.0 um at 0.4 um/px is 5 px, not 4.99).
    reach = math.floor((tolerance_um / um_per_px) ** 2 * (1 + 1e-9))
    limit = math.sqrt(reach + 0.5)
    annotated = truth != IGNORE
    found = [np.where(edges(labels, annotated), labels, IGNORE) for labels in (truth, prediction)]
    points = [_points(labels, classes) for labels in found]
    result = np.zeros((classes, 4), np.int64)
    for c in range(classes):
        both = [points[which][c] for which in (0, 1)]
        result[c] = len(both[0]), _matched(*both, limit), len(both[1]), _matched(*both[::-1], limit)
    return result


def _points(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """Coordinates of the pixels of each class: C arrays (N, 2) of y, x."""
    flat = np.flatnonzero(labels != IGNORE)
    ids = labels.reshape(-1)[flat]
    order = np.argsort(ids, kind='stable')
    yx = np.stack(np.divmod(flat[order], labels.shape[1]), 1)
    return np.split(yx, np.searchsorted(ids[order], np.arange(1, classes + 1)))[:classes]


def _tree(points: np.ndarray) -> cKDTree:
    """Built for few queries: neither balanced nor compact, which takes half the time."""
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def _matched(points: np.ndarray, others: np.ndarray, limit: float) -> int:
    """How many points have another nearer than the limit."""
    if not len(points) or not len(others):
        return 0
    return int(np.isfinite(_tree(others).query(points, distance_upper_bound=limit)[0]).sum())


def boundary_scores(counts: np.ndarray, names: Sequence[str], tolerance_um: float) -> dict:
    """Scores in percent from pooled counts (C, 4).

    A class without a boundary in the truth is absent: None, and in no mean.
    """
    classes = {}
    for name, (truth, truth_hit, predicted, predicted_hit) in zip(names, counts.astype(np.float64)):
        row = dict(boundary_F1=None, NSD=None)
        if truth:
            recall, precision = truth_hit / truth, predicted_hit / predicted if predicted else 0.0
            both = recall + precision
            row['boundary_F1'] = 200 * recall * precision / both if both else 0.0
            row['NSD'] = 100 * (truth_hit + predicted_hit) / (truth + predicted)
        classes[name] = row

    def mean(key: str) -> float | None:
        return number(np.mean(values)) if (values := [r[key] for r in classes.values() if r[key] is not None]) else None

    return dict(tolerance_um=tolerance_um, classes=classes, mean_boundary_F1=mean('boundary_F1'), mean_NSD=mean('NSD'))
