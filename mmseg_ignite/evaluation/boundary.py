"""Boundary agreement at a tolerance: boundary F1 and normalised surface distance (NSD).

Definitions per class c, symmetric in ground truth and prediction:

- Only pixels annotated in the ground truth count, in the prediction too. A boundary pixel is a pixel of class c with another
  class at one of its four annotated neighbours, so borders of the ROI and of the unannotated area are not boundaries.
- A boundary pixel is matched if the other map has a boundary pixel of c at most ``tolerance_um`` away (Euclidean distance
  between pixel centres).
- Four counts add up over ROIs: boundary pixels of the truth, those matched, boundary pixels of the prediction, those matched.
- Boundary F1 (Csurka et al. 2013) is the harmonic mean of the two matched fractions. NSD (Nikolov et al. 2021) is the matched
  pixels of both maps over the boundary pixels of both, with one boundary pixel as one surface element.

MONAI and DeepMind's ``surface-distance`` do not support unannotated pixels and do not return counts that add up over ROIs.
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
    """Find the boundary pixels of all classes, (H, W) bool, in labels (H, W) where ``annotated``, (H, W) bool."""
    found = np.zeros(labels.shape, bool)
    # Transposed views share the memory, so the second pass compares and marks horizontal neighbours.
    for ids, valid, edge in ((labels, annotated, found), (labels.T, annotated.T, found.T)):
        differ = (ids[1:] != ids[:-1]) & valid[1:] & valid[:-1]
        edge[1:] |= differ
        edge[:-1] |= differ
    return found


def check_tolerance(tolerance_um: float) -> None:
    """Raise :class:`IgniteError` unless the tolerance is a positive, finite length."""
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
    """Count the boundary pixels of one ROI and how many are matched.

    Args:
        truth: (H, W) uint8 train ids, 255 unannotated.
        prediction: (H, W) uint8 train ids, 255 where nothing was predicted (treated as a class of its own).
        tolerance_um: Positive length in micrometres.
        um_per_px: Resolution in micrometres per pixel.
        roi: Name for error messages.

    Returns:
        (C, 4) int64, columns as in ``COUNTS``.

    Raises:
        IgniteError: The tolerance is not a positive length, or the resolution is unknown.
    """
    check_tolerance(tolerance_um)
    if not um_per_px or not um_per_px > 0:
        raise IgniteError(f'{roi} has no um_per_px, which a boundary tolerance in um requires: omit the tolerance.')
    # Squared distances are integers. Round the largest allowed one (2.0 um at 0.4 um/px is 5 px, not 4.99).
    limit = math.sqrt(math.floor((tolerance_um / um_per_px) ** 2 * (1 + 1e-9)) + 0.5)
    annotated = truth != IGNORE
    points = [_points(np.where(edges(m, annotated), m, IGNORE), classes) for m in (truth, prediction)]
    rows = [(len(t), _matched(t, p, limit), len(p), _matched(p, t, limit)) for t, p in zip(*points)]
    return np.array(rows, np.int64).reshape(classes, len(COUNTS))


def _points(labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """Return the (y, x) coordinates of the pixels of each class: C arrays (N, 2)."""
    flat = np.flatnonzero(labels != IGNORE)
    ids = labels.reshape(-1)[flat]
    order = np.argsort(ids, kind='stable')
    yx = np.stack(np.divmod(flat[order], labels.shape[1]), 1)
    return np.split(yx, np.searchsorted(ids[order], np.arange(1, classes + 1)))[:classes]


def _matched(points: np.ndarray, others: np.ndarray, limit: float) -> int:
    """Count the points that have one of the others within the limit (px)."""
    if not len(points) or not len(others):
        return 0
    tree = cKDTree(others, balanced_tree=False, compact_nodes=False)  # built in half the time, for a single query
    return int(np.isfinite(tree.query(points, distance_upper_bound=limit)[0]).sum())


def boundary_scores(counts: np.ndarray, names: Sequence[str], tolerance_um: float) -> dict:
    """Compute boundary scores in percent from the pooled counts (C, 4) of the C ``names``; copy the tolerance.

    A class without a boundary in the ground truth is absent: its scores are None and excluded from the means.
    """
    classes = {name: dict(boundary_F1=None, NSD=None) for name in names}
    for row, (truth, truth_hit, predicted, predicted_hit) in zip(classes.values(), counts.astype(np.float64)):
        if truth:
            recall, precision = truth_hit / truth, predicted_hit / predicted if predicted else 0.0
            both = recall + precision
            row['boundary_F1'] = 200 * recall * precision / both if both else 0.0
            row['NSD'] = 100 * (truth_hit + predicted_hit) / (truth + predicted)
    means = {}
    for key in ('boundary_F1', 'NSD'):
        values = [row[key] for row in classes.values() if row[key] is not None]
        means[f'mean_{key}'] = number(np.mean(values)) if values else None
    return dict(tolerance_um=tolerance_um, classes=classes, **means)
