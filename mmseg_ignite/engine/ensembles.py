"""What a user gives as a checkpoint: one file, a work dir, or a JSON file that lists the members of an ensemble.

    {"format": 1, "checkpoints": ["fold0/iter_20000.pth", "fold1/iter_20000.pth"], "patients": [1, 2]}

Paths are relative to the JSON file and inside its folder, also after following links, so that the folder can be moved as a
whole. ``patients`` (optional) are the patients that a member was trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmseg.registry import MODELS

from ..datasets.prepared import INDEX
from ..errors import IgniteError
from ..files import write_result
from ..provenance import file_sha256
from ..untrusted import Form, check_form, file_inside, is_text, read_json
from .checkpoints import load_weights, open_checkpoint
from .checkpoints.remote import local_file
from .training_record import TrainingRecord
from .work_dirs import find_checkpoint

FORMAT = 1
MAX_MEMBERS = 64
"""Most members of an ensemble; all are in memory at once."""
_FORM = {
    'format': Form(lambda value: type(value) is int and value == FORMAT, f'{FORMAT}'),
    'checkpoints': Form(
        lambda value: isinstance(value, list) and 0 < len(value) <= MAX_MEMBERS and all(map(is_text, value)),
        f'a list of 1 to {MAX_MEMBERS} paths',
    ),
    'patients?': [Form(lambda value: is_text(value) or type(value) is int, 'the name of a patient')],
}


@dataclass(frozen=True)
class Ensemble:
    """The networks that predict together, read once; a single checkpoint is an ensemble of one.

    Attributes:
        path: the checkpoint file, or the JSON file of the ensemble.
        members: checkpoint files of the networks.
        patients: names of the training patients that the JSON file states.

    Example:
        >>> ensemble = Ensemble.read('work_dirs/b0-folds/ensemble.json')
        >>> ensemble.check_members(cfg.model)
        >>> model = MODELS.build(ensemble.model_config(cfg.model))
        >>> metas = ensemble.load_into(model)
    """

    path: Path
    members: tuple[Path, ...]
    patients: frozenset[str] = frozenset()

    @classmethod
    def read(cls, checkpoint: str | Path) -> Ensemble:
        """Read a checkpoint path: a ``.pth`` or ``.safetensors`` file, a work dir (its latest checkpoint), or a ``.json``.

        Raises:
            IgniteError: a file is missing, the JSON file is not valid, or a member is listed twice or is outside its folder,
                also by a link.
        """
        path = local_file(checkpoint)
        if path.suffix.lower() != '.json':
            path = find_checkpoint(path)
            return cls(path, (path,))
        content = _read_json(path)
        patients = frozenset(map(str, content.get('patients', ())))
        return cls(path, tuple(_members(path, content['checkpoints'])), patients)

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

    def check_members(self, model: dict) -> None:
        """Check every member of an ensemble before all its networks are built; a single checkpoint is not read.

        Each member is loaded into the same single network, so that files that are no checkpoints of the model, however many
        are listed, take no more memory than one network.

        Args:
            model: ``model`` of the config, as given to or returned by :meth:`model_config`.

        Raises:
            IgniteError: see :meth:`load_into`.
        """
        if len(self.members) == 1:
            return
        single = type(model)(model, type='TissueSegmentor')
        single.pop('size', None)
        network = MODELS.build(single)
        for member in self.members:
            load_weights(network, member)

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
    remedy = f'write {{"format": {FORMAT}, "checkpoints": ["fold0/iter_20000.pth", ...]}}'
    content = read_json(path, remedy)
    check_form(content, _FORM, path, remedy)
    return content


def _members(path: Path, names: list[str]) -> list[Path]:
    """Return the files of the members, each inside the folder of the JSON file and another one."""
    found: dict[tuple[int, int], Path] = {}
    for name in names:
        member = file_inside(path.parent, name, path)
        status = member.stat()
        identity = status.st_dev, status.st_ino  # shared by all names and links of a file
        if identity in found:
            raise IgniteError(
                f'{path} lists {name[:80]!r}, which is the same file as {str(found[identity])!r}, twice; each member counts '
                'once: remove one.'
            )
        found[identity] = member
    return list(found.values())


def write_ensemble(path: str | Path, checkpoints: Sequence[str | Path], patients: Iterable[object] = ()) -> None:
    """Write the JSON file of an ensemble beside its checkpoints, with the patients that a member was trained on."""
    path = Path(path)
    names = [Path(checkpoint).relative_to(path.parent).as_posix() for checkpoint in checkpoints]
    known = dict(patients=sorted(set(patients), key=str)) if patients else {}
    write_result(path, dict(format=FORMAT, checkpoints=names, **known))
