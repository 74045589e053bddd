"""What is given as a checkpoint: one file of weights, or an ensemble, a JSON file that lists several.

    {"format": 1, "checkpoints": ["fold0/iter_20000.pth", "fold1/iter_20000.pth"], "patients": [1, 2]}

The paths are relative to the JSON file's folder and stay in it, so that the folder can be moved as a whole. ``patients``,
which may be missing, are those that a member was trained on.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ..errors import IgniteError
from ..files import write_result
from .checkpoints import load_weights
from .work_dirs import find_checkpoint

FORMAT = 1


def is_ensemble(checkpoint: str | Path) -> bool:
    """Whether a path is that of an ensemble: by its suffix."""
    return Path(checkpoint).suffix.lower() == '.json'


def set_members(model: dict, checkpoint: str | Path) -> tuple[dict, list[Path]]:
    """The model that goes with a checkpoint or an ensemble, and the checkpoints to load by :func:`load_members`.

    Args:
        model: ``model`` of a config; it is not changed.

    Returns:
        The model as it is and the checkpoint; or a TissueEnsemble of such and the checkpoints of its members.

    Raises:
        IgniteError: the checkpoint is missing; as :func:`read_ensemble`; or an ensemble for another model than
            TissueSegmentor.
    """
    if not is_ensemble(checkpoint):
        return model, [find_checkpoint(checkpoint)]
    members = read_ensemble(checkpoint)
    kind = str(model.get('type')).split('.')[-1]
    if kind not in ('TissueSegmentor', 'TissueEnsemble'):
        raise IgniteError(
            f"{checkpoint} is an ensemble, which goes with model.type='TissueSegmentor', and the config has {kind}: set "
            'that type, or give one checkpoint.'
        )
    return type(model)(model, type='TissueEnsemble', size=len(members)), members


def load_members(model: torch.nn.Module, checkpoints: Sequence[Path]) -> list[dict]:
    """Load each member's checkpoint, every key and shape exactly.

    Args:
        model: built of what :func:`set_members` returns.

    Returns:
        The ``meta`` of each checkpoint, empty for bare weights.

    Raises:
        IgniteError: a checkpoint is missing, damaged or of another model.
    """
    members = model.members if len(checkpoints) > 1 else [model]
    return [
        load_weights(member, checkpoint, 'others.' if member is model and len(members) > 1 else None)
        for member, checkpoint in zip(members, checkpoints, strict=True)
    ]


def read_ensemble(path: str | Path) -> list[Path]:
    """The checkpoints of an ensemble.

    Raises:
        IgniteError: missing, no JSON or not of this form; a checkpoint is missing, named twice or not inside the folder.
    """
    path = Path(path)
    if not path.is_file():
        raise IgniteError(
            f'{path} is not a file; an ensemble, a JSON list of checkpoints, was expected: check the path.'
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise IgniteError(f'{path} cannot be read as JSON ({error}): write it again.') from error
    names = content.get('checkpoints') if isinstance(content, dict) else None
    if (
        names is None
        or content.get('format') != FORMAT
        or not (isinstance(names, list) and names and all(isinstance(name, str) for name in names))
    ):
        raise IgniteError(
            f'{path} is not a valid ensemble file (format {FORMAT}); {{"format": {FORMAT}, "checkpoints": '
            '["fold0/iter_20000.pth", ...]} was expected: correct it.'
        )
    places = [os.path.normpath(name) for name in names]
    for name, place in zip(names, places):
        if os.path.isabs(place) or place.split(os.sep)[0] == os.pardir:
            raise IgniteError(
                f'{path} names {name}; a path relative to its folder and inside it was expected: put the checkpoints '
                'beside it.'
            )
        if not (path.parent / place).is_file():
            raise IgniteError(f'{path} names {name}, which is not a file in {path.parent}: put the checkpoint there.')
        if places.count(place) > 1:
            raise IgniteError(f'{path} names {name} twice; each member counts once: leave one out.')
    return [path.parent / place for place in places]


def ensemble_patients(path: str | Path) -> set[str]:
    """The patients that an ensemble states its members were trained on; empty if it states none."""
    known = json.loads(Path(path).read_text(encoding='utf-8')).get('patients')
    return set(map(str, known)) if isinstance(known, list) else set()


def write_ensemble(path: str | Path, checkpoints: Sequence[str | Path], patients: Iterable[object] = ()) -> None:
    """Write an ensemble of checkpoints that lie in its folder, and the patients that a member was trained on."""
    path = Path(path)
    names = [Path(checkpoint).relative_to(path.parent).as_posix() for checkpoint in checkpoints]
    known = dict(patients=sorted(set(patients), key=str)) if patients else {}
    write_result(path, dict(format=FORMAT, checkpoints=names, **known))
