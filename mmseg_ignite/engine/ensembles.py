"""What a user gives as a checkpoint: one file, a work dir, or a JSON file that lists the members of an ensemble.

    {"format": 1, "checkpoints": ["fold0/iter_20000.pth", "fold1/iter_20000.pth"], "patients": [1, 2]}

Paths are relative to the JSON file and inside its folder, so that the folder can be moved as a whole. ``patients`` (optional)
are the patients that a member was trained on.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..datasets.prepared import INDEX
from ..errors import IgniteError
from ..files import write_result
from ..provenance import file_sha256
from .checkpoints import load_weights, open_checkpoint
from .training_record import TrainingRecord
from .work_dirs import find_checkpoint

FORMAT = 1


@dataclass(frozen=True)
class Ensemble:
    """The networks that predict together, read once; a single checkpoint is an ensemble of one.

    Attributes:
        path: the checkpoint file, or the JSON file of the ensemble.
        members: checkpoint files of the networks.
        patients: names of the training patients that the JSON file states.

    Example:
        >>> ensemble = Ensemble.read('work_dirs/b0-folds/ensemble.json')
        >>> model = MODELS.build(ensemble.model_config(cfg.model))
        >>> metas = ensemble.load_into(model)
    """

    path: Path
    members: tuple[Path, ...]
    patients: frozenset[str] = frozenset()

    @classmethod
    def read(cls, checkpoint: str | Path) -> Ensemble:
        """Read a checkpoint path: a ``.pth`` file, a work dir (its latest checkpoint), or a ``.json`` file.

        Raises:
            IgniteError: a file is missing, the JSON file is not valid, or a member is listed twice or outside its folder.
        """
        path = Path(checkpoint)
        if path.suffix.lower() != '.json':
            path = find_checkpoint(path)
            return cls(path, (path,))
        content = _read_json(path)
        patients = content.get('patients')
        known = map(str, patients) if isinstance(patients, list) else ()
        return cls(path, tuple(_members(path, content['checkpoints'])), frozenset(known))

    @property
    def is_single(self) -> bool:
        """Whether this is one checkpoint file rather than a JSON file."""
        return self.members == (self.path,)

    def model_config(self, model: dict) -> dict:
        """Return the ``model`` of a config for these networks: unchanged, or as a TissueEnsemble.

        Raises:
            IgniteError: several networks of another segmentor than TissueSegmentor.
        """
        if self.is_single:
            return model
        kind = str(model.get('type')).split('.')[-1]
        if kind not in ('TissueSegmentor', 'TissueEnsemble'):
            raise IgniteError(
                f"{self.path} is an ensemble and requires model.type='TissueSegmentor', but the config has {kind}: change "
                'the type, or give one checkpoint.'
            )
        return type(model)(model, type='TissueEnsemble', size=len(self.members))

    def load_into(self, model: torch.nn.Module) -> list[dict]:
        """Load every member's weights into a model built from :meth:`model_config`; keys and shapes must match exactly.

        Returns:
            The ``meta`` of each checkpoint, empty for bare weights.

        Raises:
            IgniteError: a checkpoint is missing, damaged or belongs to another model.
        """
        if len(self.members) == 1:
            return [load_weights(model, self.members[0])]
        return [
            load_weights(network, member, skip_prefix='others.' if network is model else None)
            for network, member in zip(model.members, self.members, strict=True)
        ]

    def metas(self) -> list[dict | None]:
        """Read the ``meta`` of each checkpoint without a model; None for bare weights."""
        return [open_checkpoint(member).get('meta') for member in self.members]

    def seen_patients(
        self,
        metas: Sequence[dict | None],
        data: str | Path,
        entries: Sequence[dict],
        allowed: bool = False,
        count_validation: bool = True,
    ) -> list[str]:
        """Return the patients to be scored whom a network was trained on or selected by; warn if a checkpoint does not say.

        Args:
            metas: ``meta`` of the members' checkpoints.
            data: prepared data set of the ROIs.
            entries: index entries of the ROIs to be scored.
            allowed: return such patients instead of refusing them.
            count_validation: count patients whose validation selected a checkpoint.

        Raises:
            IgniteError: there are such patients and they are not allowed.
        """
        records = [TrainingRecord.of_meta(meta) for meta in metas]
        known = {*self.patients}
        for record in filter(None, records):
            known.update(record.train_patients, record.val_patients if count_validation else ())
        patients = {str(entry['patient']) for entry in entries}
        seen = sorted(patients & known)
        if not self.patients and (silent := records.count(None)):
            who = self.path if self.is_single else f'{silent} of the {len(records)} members of {self.path}'
            warnings.warn(
                f'{who} does not state its training patients, so whether it has seen those scored is unknown.'
            )
        if seen and not allowed:
            checksum = file_sha256(Path(data) / INDEX)
            other = any(record and record.data_sha256 not in (None, checksum) for record in records)
            doubt = ' The prepared data set is not the one of the training; names may mean other people in it.' * other
            fold = '' if self.is_single else ' (protocol=fold0 for the ensemble of a cross-validation)'
            raise IgniteError(
                f'{self.path} was trained or validated on {len(seen)} of the {len(patients)} patients to be scored, e.g. '
                f'{seen[0]}; its scores would be too high.{doubt} Test with the protocol of its training{fold}, or pass '
                '--allow-seen-patients.'
            )
        return seen

    def checksums(self) -> dict:
        """Return SHA-256 of the file and, for an ensemble, of its members, for :func:`mmseg_ignite.provenance.provenance`."""
        members = None if self.is_single else [file_sha256(member) for member in self.members]
        return dict(checkpoint_sha256=file_sha256(self.path), members_sha256=members)


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise IgniteError(f'{path} is not a file; a JSON list of checkpoints was expected: check the path.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise IgniteError(f'{path} cannot be read as JSON ({error}): write it again.') from error
    names = content.get('checkpoints') if isinstance(content, dict) else None
    valid = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    if not valid or content.get('format') != FORMAT:
        raise IgniteError(
            f'{path} is not a valid ensemble file (format {FORMAT}): expected {{"format": {FORMAT}, "checkpoints": '
            '["fold0/iter_20000.pth", ...]}.'
        )
    return content


def _members(path: Path, names: list[str]) -> list[Path]:
    relative = [os.path.normpath(name) for name in names]
    for name, part in zip(names, relative):
        if os.path.isabs(part) or part.split(os.sep)[0] == os.pardir:
            raise IgniteError(
                f'{path} lists {name}; a path relative to its folder and inside it was expected: move the checkpoints '
                'beside it.'
            )
        if not (path.parent / part).is_file():
            raise IgniteError(f'{path} lists {name}, which is not a file in {path.parent}: put the checkpoint there.')
        if relative.count(part) > 1:
            raise IgniteError(f'{path} lists {name} twice; each member counts once: remove one.')
    return [path.parent / part for part in relative]


def write_ensemble(path: str | Path, checkpoints: Sequence[str | Path], patients: Iterable[object] = ()) -> None:
    """Write the JSON file of an ensemble beside its checkpoints, with the patients that a member was trained on."""
    path = Path(path)
    names = [Path(checkpoint).relative_to(path.parent).as_posix() for checkpoint in checkpoints]
    known = dict(patients=sorted(set(patients), key=str)) if patients else {}
    write_result(path, dict(format=FORMAT, checkpoints=names, **known))
