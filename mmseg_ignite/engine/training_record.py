"""The training record in a checkpoint: the patients it has seen, the data, the resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..datasets.prepared import INDEX
from ..provenance import file_sha256
from ..untrusted import is_number
from ..version import __version__

KEY = 'mmseg_ignite'
"""The record's key in a checkpoint's ``meta``."""


@dataclass(frozen=True)
class TrainingRecord:
    """Facts about a training, stored in every checkpoint that the tools write.

    Attributes:
        train_patients: names of the patients whose pixels the weights were fitted to, in this run and in the trainings of
            its initial weights.
        val_patients: names of the patients whose scores selected checkpoints.
        data_sha256: SHA-256 of the prepared data set's index; None if unknown.
        um_per_px: median resolution of the training ROIs, um/px; None if unknown.
        version: version of this package.
    """

    train_patients: list[str]
    val_patients: list[str]
    data_sha256: str | None = None
    um_per_px: float | None = None
    version: str = __version__

    @classmethod
    def of_meta(cls, meta: object) -> TrainingRecord | None:
        """Read the record in a checkpoint's ``meta``; return None if there is no valid one."""
        found = meta.get(KEY) if isinstance(meta, Mapping) else None
        if not isinstance(found, Mapping):
            return None
        patients = {key: found.get(key) for key in ('train_patients', 'val_patients')}
        if not all(isinstance(value, (list, tuple)) for value in patients.values()):
            return None
        um_per_px = found.get('um_per_px')
        return cls(
            **{key: sorted(map(str, value)) for key, value in patients.items()},
            data_sha256=str(found['data_sha256']) if found.get('data_sha256') else None,
            um_per_px=float(um_per_px) if is_number(um_per_px, 1e-9) else None,
            version=str(found.get('version', '')),
        )

    @classmethod
    def of_datasets(cls, train: object, val: object = None) -> TrainingRecord:
        """Record a training on data sets whose samples may have ``patient`` and ``um_per_px``."""
        samples, validated = _infos(train), _infos(val)
        resolutions = [info['um_per_px'] for info in samples if info.get('um_per_px')]
        root = getattr(train, 'data_root', None)
        index = Path(root) / INDEX if root else None
        return cls(
            train_patients=_patients(samples),
            val_patients=_patients(validated),
            data_sha256=file_sha256(index) if index is not None and index.is_file() else None,
            um_per_px=float(np.median(resolutions)) if resolutions else None,
        )

    def following(self, earlier: TrainingRecord | None) -> TrainingRecord:
        """Return this record with the patients of an earlier training, whose weights this one started from."""
        if earlier is None:
            return self
        return replace(
            self,
            train_patients=sorted({*self.train_patients, *earlier.train_patients}),
            val_patients=sorted({*self.val_patients, *earlier.val_patients}),
        )

    def as_meta(self) -> dict:
        """Return the record as plain containers for ``meta``."""
        return {KEY: asdict(self)}


def _infos(dataset: object) -> list[dict]:
    if not hasattr(dataset, 'get_data_info'):
        return []
    return [dataset.get_data_info(number) for number in range(len(dataset))]


def _patients(infos: list[dict]) -> list[str]:
    return sorted({str(info['patient']) for info in infos if info.get('patient') not in (None, '')})
