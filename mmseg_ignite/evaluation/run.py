"""What an evaluation keeps, and all that is made of it: the raw counts of each ROI in, metrics.json out."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import IgniteError
from ..files import atomic_file, write_json
from ..labels import CLASSES, IGNORE, histogram
from . import per_roi as rois
from .bootstrap import SAMPLES, intervals, units
from .boundary import boundary_counts, boundary_scores
from .calibration import calibration_counts, calibration_scores
from .confusion import confusion_matrix, scores, table
from .groupings import check_groupings, group_intervals, group_scores, published_intervals, published_scores
from .tables import TABLE_FILES, write_csv, write_tables

SCHEMA_VERSION = 1
RAW, METRICS = 'confusion.npz', 'metrics.json'
RUN_FILES = (RAW, 'per_roi.csv', 'metrics.txt', METRICS, *TABLE_FILES)
"""What :func:`write_run` writes."""
_OPTIONAL = ('unpredicted', 'boundary', 'confidence', 'entropy')
"""Counts that not every run has, an entry an ROI."""


def score_roi(
    metadata: dict,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: int,
    boundary_tolerance_um: float | None = None,
    probabilities: np.ndarray | None = None,
) -> dict:
    """The raw counts of one ROI, of which :meth:`Evaluation.collect` makes an evaluation.

    Args:
        metadata: with ``roi``, and ``um_per_px`` if boundaries are wanted.
        truth: (H, W) uint8, train ids; 255 ignored.
        prediction: (H, W) uint8, train ids; 255 where nothing was predicted.
        probabilities: (C, H, W), if calibration is wanted.
    """
    seen, unpredicted = truth, np.zeros(classes, np.int64)
    if prediction.max(initial=0) == IGNORE:
        nothing = prediction == IGNORE
        unpredicted += histogram(truth[nothing])[:classes]
        seen = np.where(nothing, IGNORE, truth)
    result = dict(metadata=metadata, matrix=confusion_matrix(seen, prediction, classes), unpredicted=unpredicted)
    if boundary_tolerance_um is not None:
        result['boundary'] = boundary_counts(
            truth, prediction, classes, boundary_tolerance_um, metadata.get('um_per_px'), metadata['roi']
        )
    if probabilities is not None:
        result['confidence'], result['entropy'] = calibration_counts(probabilities, truth)
    return result


@dataclass
class Evaluation:
    """The raw counts of each ROI of a run.

    Attributes:
        names: R names of ROIs, each once.
        matrices: (R, C, C) int64, pixels, rows truth, columns prediction.
        classes: C names.
        metadata: R dicts, each with ``roi`` and, as far as known, ``patient``, ``um_per_px``, ``organ``, ...
        unpredicted: (R, C) int64, annotated pixels for which nothing was predicted; None if there are none.
        boundary: (R, C, 4) int64, see :mod:`.boundary`; or None.
        boundary_tolerance_um: that of ``boundary``.
        confidence, entropy: (R, 15, 3) and (R, 20, 2) float64, see :mod:`.calibration`; or None.
    """

    names: list[str]
    matrices: np.ndarray
    classes: tuple[str, ...]
    metadata: list[dict] = field(default_factory=list)
    unpredicted: np.ndarray | None = None
    boundary: np.ndarray | None = None
    boundary_tolerance_um: float | None = None
    confidence: np.ndarray | None = None
    entropy: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.metadata = self.metadata or [dict(roi=name) for name in self.names]
        count, classes = len(self.names), len(self.classes)
        if len(set(self.names)) != count:
            raise ValueError('an ROI stands twice in it')
        if np.shape(self.matrices) != (count, classes, classes) or len(self.metadata) != count or not count:
            raise ValueError(
                f'it holds {count} names, {len(self.metadata)} metadata, {classes} classes and matrices of shape '
                f'{np.shape(self.matrices)}'
            )
        if [m.get('roi') for m in self.metadata] != self.names:
            raise ValueError('its metadata are of other ROIs')
        for key in _OPTIONAL:
            if (value := getattr(self, key)) is not None and len(value) != count:
                raise ValueError(f'its {key} is of {len(value)} ROIs, not of {count}')

    @classmethod
    def collect(
        cls, results: Sequence[dict], classes: Sequence[str], boundary_tolerance_um: float | None = None
    ) -> Evaluation:
        """Of results of :func:`score_roi`; optional counts are kept where every ROI has them."""

        def stacked(key: str) -> np.ndarray | None:
            return np.stack([r[key] for r in results]) if results and all(key in r for r in results) else None

        unpredicted = stacked('unpredicted')
        return cls(
            names=[r['metadata']['roi'] for r in results],
            matrices=stacked('matrix'),
            classes=tuple(classes),
            metadata=[r['metadata'] for r in results],
            unpredicted=unpredicted if unpredicted is not None and unpredicted.any() else None,
            boundary=(boundary := stacked('boundary')),
            boundary_tolerance_um=boundary_tolerance_um if boundary is not None else None,
            confidence=stacked('confidence'),
            entropy=stacked('entropy'),
        )

    @classmethod
    def merge(cls, evaluations: Sequence[Evaluation]) -> Evaluation:
        """One of several of different ROIs, by name; boundaries and calibration are kept where all have them.

        Raises:
            IgniteError: they are of other classes or boundary tolerances, or an ROI stands in two of them.
        """
        names = [name for e in evaluations for name in e.names]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise IgniteError(f'the ROI {twice[0]} stands in two of the runs to pool: pool runs of different ROIs.')
        tolerances = {e.boundary_tolerance_um for e in evaluations}
        for what, found in (
            ('classes', {e.classes for e in evaluations}),
            ('boundary_tolerance_um', tolerances - {None}),
        ):
            if len(found) > 1:
                raise IgniteError(f'the runs to pool differ in {what}: score them alike.')
        order = np.argsort(names, kind='stable')

        def joined(key: str) -> np.ndarray | None:
            values = [getattr(e, key) for e in evaluations]
            if key == 'unpredicted' and any(v is not None for v in values):  # None: there are no such pixels
                values = [
                    np.zeros(e.matrices.shape[:2], np.int64) if v is None else v for e, v in zip(evaluations, values)
                ]
            return None if any(v is None for v in values) else np.concatenate(values)[order]

        metadata = [m for e in evaluations for m in e.metadata]
        return cls(
            names=[names[i] for i in order],
            matrices=joined('matrices'),
            classes=evaluations[0].classes,
            metadata=[metadata[i] for i in order],
            boundary_tolerance_um=None if None in tolerances else tolerances.pop(),
            **{key: joined(key) for key in _OPTIONAL},
        )

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Of ``confusion.npz`` or the run folder that holds it; files without metadata, as written earlier, load too.

        Raises:
            IgniteError: missing, or no such file.
        """
        path = Path(path)
        path = path / RAW if path.is_dir() else path
        if not path.is_file():
            raise IgniteError(
                f'{path} is not there; {RAW} of a run of tools/test.py or tools/evaluate.py was expected: check the path.'
            )
        try:
            with np.load(path) as data:
                optional = {key: data[key] for key in _OPTIONAL if key in data}
                return cls(
                    names=[str(n) for n in data['names']],
                    matrices=data['matrices'].astype(np.int64),
                    classes=tuple(str(c) for c in data['classes']),
                    metadata=json.loads(str(data['metadata'])) if 'metadata' in data else [],
                    boundary_tolerance_um=float(data['boundary_tolerance_um']) if 'boundary' in data else None,
                    **optional,
                )
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise IgniteError(
                f'{path} is no {RAW} of a run ({error}): name one that tools/test.py or tools/evaluate.py wrote.'
            ) from error

    def save(self, path: str | Path) -> None:
        """Write ``confusion.npz``; counts that are not there are left away."""
        optional = {
            key: value for key in (*_OPTIONAL, 'boundary_tolerance_um') if (value := getattr(self, key)) is not None
        }
        with atomic_file(path) as partial:
            np.savez_compressed(
                partial,
                names=np.array(self.names),
                matrices=self.matrices,
                classes=np.array(self.classes),
                metadata=np.array(json.dumps(self.metadata, ensure_ascii=False)),
                **optional,
            )

    @property
    def counts(self) -> np.ndarray:
        """The matrices, with a last column of pixels without prediction if there are any: (R, C, C) or (R, C, C + 1)."""
        if self.unpredicted is None:
            return self.matrices
        return np.concatenate([self.matrices, self.unpredicted[..., None]], -1)

    def scores(self) -> dict:
        """The scores of the pooled counts alone, see :func:`.confusion.scores`."""
        return scores(self.counts.sum(0), self.classes)

    def metrics(self, groupings: Mapping | None = None, samples: int = SAMPLES, seed: int = 0) -> dict:
        """All that follows from the counts, as ``metrics.json`` holds it (see docs/evaluation.md).

        Args:
            groupings: {grouping: {group: [class names] or 'rest'}}, beside the built-in ones.
            samples: of the bootstrap; 0 leaves the intervals away.
            seed: of the bootstrap.

        Raises:
            IgniteError: a grouping is wrong, or there are too few samples.
        """
        counts, members = self.counts, check_groupings(groupings, self.classes)
        pooled = counts.sum(0)
        result = dict(schema_version=SCHEMA_VERSION, **scores(pooled, self.classes))
        if self.classes == CLASSES:
            result['published'] = published_scores(pooled)
        result['groupings'] = {name: group_scores(pooled, m) for name, m in members.items()}
        if samples:
            result['intervals'] = intervals(counts, self.metadata, self.classes, samples, seed)
            if 'published' in result:
                result['published']['intervals'] = published_intervals(counts, self.metadata, samples, seed)
            for name, m in members.items():
                found = group_intervals(counts, self.metadata, m, samples, seed)
                result['groupings'][name]['intervals'] = found
        result['strata'] = rois.strata(counts, self.metadata, self.classes, samples, seed)
        result['worst_rois'] = rois.worst_rois(counts, self.metadata, self.classes)
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
    """Write ``confusion.npz``, ``per_roi.csv``, ``tables``, ``metrics.txt`` and, last, ``metrics.json`` into a folder.

    Args:
        context: what the counts do not know: checkpoint, config, split, protocol, ...; ``provenance``, a dict of version,
            date, command, config_sha256, checkpoint_sha256, data_sha256 and seed, as far as known; ``seen_patients``, those
            of the scored patients that the checkpoint was trained or validated on; ``folds`` (see
            :func:`.folds.fold_scores`) and ``ensemble`` of a cross-validation.
        groupings, samples, seed: see :meth:`Evaluation.metrics`.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        IgniteError: a grouping is wrong, or the folder cannot be written.
    """
    folder = Path(folder)
    result = {**evaluation.metrics(groupings, samples, seed), **context}
    rows = rois.per_roi(evaluation.counts, evaluation.metadata, evaluation.classes)
    try:
        evaluation.save(folder / RAW)
        write_csv(folder / 'per_roi.csv', rows)
        write_tables(folder, result)
        with atomic_file(folder / 'metrics.txt') as partial:
            partial.write_text(table(result) + '\n', encoding='utf-8', errors='backslashreplace')
        write_json(folder / METRICS, result)
    except OSError as error:
        raise IgniteError(f'{folder} cannot be written ({error.strerror or error}): choose another folder.') from error
    return result
