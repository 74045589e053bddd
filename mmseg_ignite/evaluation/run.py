"""The counts of a run (:class:`Evaluation`), everything computed from them, and the files of a run folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import IgniteError
from ..files import atomic_file, write_json, writing
from ..labels import CLASSES
from .bootstrap import SAMPLES, intervals, units
from .boundary import boundary_counts, boundary_scores
from .calibration import calibration_counts, calibration_scores
from .confusion import count_pairs, scores
from .groupings import check_groupings, group_scores, published_scores
from .per_roi import per_roi, strata, worst_rois
from .saved_counts import read_counts
from .saved_metrics import SCHEMA_VERSION
from .tables import TABLE_FILES, write_csv, write_tables
from .text_table import table

RAW, METRICS = 'confusion.npz', 'metrics.json'
RUN_FILES = (RAW, 'per_roi.csv', 'metrics.txt', METRICS, *TABLE_FILES)
"""Files that :func:`write_run` writes."""
_OPTIONAL = ('unpredicted', 'boundary', 'confidence', 'entropy')
"""Counts per ROI that not every run has."""


def score_roi(
    metadata: dict,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: int,
    boundary_tolerance_um: float | None = None,
    probabilities: np.ndarray | None = None,
) -> dict:
    """Count the pixels of one ROI, for :meth:`Evaluation.collect`.

    Args:
        metadata: With ``roi``, and ``um_per_px`` if boundaries are counted.
        truth: (H, W) uint8 train ids, 255 unannotated.
        prediction: (H, W) uint8 train ids, 255 where nothing was predicted.
        boundary_tolerance_um: Also count boundaries, at this tolerance in micrometres.
        probabilities: (C, H, W) float, to count by confidence and entropy too.
    """
    matrix, unpredicted = count_pairs(truth, prediction, classes)
    result = dict(metadata=metadata, matrix=matrix, unpredicted=unpredicted)
    if boundary_tolerance_um is not None:
        um_per_px, roi = metadata.get('um_per_px'), metadata['roi']
        result['boundary'] = boundary_counts(truth, prediction, classes, boundary_tolerance_um, um_per_px, roi)
    if probabilities is not None:
        result['confidence'], result['entropy'] = calibration_counts(probabilities, truth)
    return result


@dataclass
class Evaluation:
    """Pixel counts of each ROI of a run; ValueError if sizes or names contradict each other.

    Example:
        >>> Evaluation.load('work_dirs/run').metrics(samples=0)['mIoU']
    """

    names: list[str]  # R unique names of ROIs
    matrices: np.ndarray  # (R, C, C) int64 pixels; rows are ground truth, columns prediction
    classes: tuple[str, ...]  # C names
    metadata: list[dict] = field(default_factory=list)  # R, with roi and, if known, patient, um_per_px, organ, ...
    unpredicted: np.ndarray | None = None  # (R, C) int64, annotated pixels without a prediction; None if there are none
    boundary: np.ndarray | None = None  # (R, C, 4) int64, see the module boundary
    boundary_tolerance_um: float | None = None  # in micrometres
    confidence: np.ndarray | None = None  # (R, 15, 3) float64, see the module calibration
    entropy: np.ndarray | None = None  # (R, 20, 2) float64

    def __post_init__(self) -> None:
        self.metadata = self.metadata or [dict(roi=name) for name in self.names]
        count, classes, shape = len(self.names), len(self.classes), np.shape(self.matrices)
        if len(set(self.names)) != count:
            raise ValueError('an ROI occurs twice')
        if shape != (count, classes, classes) or not count:
            raise ValueError(f'{count} names and {classes} classes do not match matrices of shape {shape}')
        if [m.get('roi') for m in self.metadata] != self.names:
            raise ValueError('the metadata belong to other ROIs')
        for key in _OPTIONAL:
            if (value := getattr(self, key)) is not None and len(value) != count:
                raise ValueError(f'{key} has {len(value)} ROIs instead of {count}')

    @classmethod
    def collect(
        cls, results: Sequence[dict], classes: Sequence[str], boundary_tolerance_um: float | None = None
    ) -> Evaluation:
        """Build an evaluation from results of :func:`score_roi`; keep optional counts that every ROI has."""

        def stacked(key: str) -> np.ndarray | None:
            return np.stack([r[key] for r in results]) if results and all(key in r for r in results) else None

        optional, metadata = {key: stacked(key) for key in _OPTIONAL}, [r['metadata'] for r in results]
        if optional['unpredicted'] is not None and not optional['unpredicted'].any():
            optional['unpredicted'] = None
        optional['boundary_tolerance_um'] = boundary_tolerance_um if optional['boundary'] is not None else None
        return cls([m['roi'] for m in metadata], stacked('matrix'), tuple(classes), metadata, **optional)

    @classmethod
    def merge(cls, evaluations: Sequence[Evaluation]) -> Evaluation:
        """Pool runs on different ROIs, sorted by name; keep boundaries and calibration that all runs have.

        Raises:
            IgniteError: The runs differ in classes or boundary tolerance, or share an ROI.
        """
        names = [name for e in evaluations for name in e.names]
        if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
            raise IgniteError(f'the ROI {repeated[0]} is in two of the runs to pool: pool runs on different ROIs.')
        tolerances = {e.boundary_tolerance_um for e in evaluations}
        settings = dict(classes={e.classes for e in evaluations}, boundary_tolerance_um=tolerances - {None})
        if differing := [key for key, values in settings.items() if len(values) > 1]:
            raise IgniteError(f'the runs to pool differ in {differing[0]}: score them with the same settings.')
        order = np.argsort(names, kind='stable')
        metadata = [m for e in evaluations for m in e.metadata]

        def joined(key: str) -> np.ndarray | None:
            values = [getattr(e, key) for e in evaluations]
            if key == 'unpredicted' and any(v is not None for v in values):  # None means 0 here
                values = [np.zeros_like(e.matrices[:, 0]) if v is None else v for v, e in zip(values, evaluations)]
            return None if any(v is None for v in values) else np.concatenate(values)[order]

        return cls(
            [names[i] for i in order],
            joined('matrices'),
            evaluations[0].classes,
            [metadata[i] for i in order],
            boundary_tolerance_um=None if None in tolerances else tolerances.pop(),
            **{key: joined(key) for key in _OPTIONAL},
        )

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read ``confusion.npz``, or that of a run folder, see :func:`.saved_counts.read_counts`.

        Raises:
            IgniteError: It is missing or invalid.
        """
        path = Path(path)
        path = path / RAW if path.is_dir() else path
        if not path.is_file():
            raise IgniteError(
                f'{path} does not exist; {RAW} of tools/test.py or tools/evaluate.py was expected: check it.'
            )
        return cls(**read_counts(path))

    def save(self, path: str | Path) -> None:
        """Write ``confusion.npz`` atomically, without counts that are None."""
        arrays = {key: getattr(self, key) for key in ('names', 'matrices', 'classes')}
        arrays['metadata'] = json.dumps(self.metadata, ensure_ascii=False)
        arrays |= {k: v for k in (*_OPTIONAL, 'boundary_tolerance_um') if (v := getattr(self, k)) is not None}
        with atomic_file(path) as partial:
            np.savez_compressed(partial, **arrays)

    @property
    def counts(self) -> np.ndarray:
        """Matrices with a last column of pixels without a prediction, if there are any: (R, C, C) or (R, C, C + 1)."""
        if self.unpredicted is None:
            return self.matrices
        return np.concatenate([self.matrices, self.unpredicted[..., None]], -1)

    def scores(self) -> dict:
        """Return the scores of the pooled counts, see :func:`.confusion.scores`."""
        return scores(self.counts.sum(0), self.classes)

    def metrics(self, groupings: Mapping | None = None, samples: int = SAMPLES, seed: int = 0) -> dict:
        """Compute everything that ``metrics.json`` holds about the counts (see docs/evaluation.md).

        Args:
            groupings: {grouping: {group: [class names] or 'rest'}}, in addition to the built-in ones.
            samples, seed: Number of bootstrap samples, 0 to omit the intervals, and their seed.

        Raises:
            IgniteError: A grouping is invalid, or there are too few samples.
        """
        counts, members = self.counts, check_groupings(groupings, self.classes)
        bootstrap = dict(metadata=self.metadata, samples=samples, seed=seed)
        result = dict(schema_version=SCHEMA_VERSION, **self.scores())
        if self.classes == CLASSES:
            result['published'] = published_scores(counts, **bootstrap)
        result['groupings'] = {name: group_scores(counts, m, **bootstrap) for name, m in members.items()}
        if samples:
            result['intervals'] = intervals(counts, classes=self.classes, **bootstrap)
        result['strata'] = strata(counts, classes=self.classes, **bootstrap)
        result['worst_rois'] = worst_rois(counts, self.metadata, self.classes)
        if self.boundary is not None:
            result['boundary'] = boundary_scores(self.boundary.sum(0), self.classes, self.boundary_tolerance_um)
        if self.confidence is not None:
            result['calibration'] = calibration_scores(self.confidence.sum(0), self.entropy.sum(0))
        result['rois'] = len(self.names)
        unit, names = units(self.metadata)
        result['patients'] = len(set(names)) if unit == 'patient' else None
        return result


def write_run(
    folder: str | Path,
    evaluation: Evaluation,
    context: dict,
    groupings: Mapping | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict:
    """Write ``confusion.npz``, ``per_roi.csv``, ``tables``, ``metrics.txt`` and finally ``metrics.json`` to a folder.

    Return the contents of ``metrics.json``. Raise IgniteError if a grouping is invalid or the folder cannot be written.

    Args:
        context: Facts about the run: checkpoint, config, split, protocol, ...; ``provenance``, a dict of version, date,
            command, config_sha256, checkpoint_sha256, data_sha256 and seed, if known; ``seen_patients``, the scored patients
            on which the checkpoint was trained or validated; ``folds`` (see :func:`.per_roi.fold_scores`) and ``ensemble`` of
            a cross-validation.
        groupings, samples, seed: See :meth:`Evaluation.metrics`.
    """
    folder = Path(folder)
    result = {**evaluation.metrics(groupings, samples, seed), **context}
    with writing(folder):
        evaluation.save(folder / RAW)
        write_csv(folder / 'per_roi.csv', per_roi(evaluation.counts, evaluation.metadata, evaluation.classes))
        write_tables(folder, result)
        with atomic_file(folder / 'metrics.txt') as partial:
            partial.write_text(table(result) + '\n', encoding='utf-8', errors='backslashreplace')
        write_json(folder / METRICS, result)
    return result
