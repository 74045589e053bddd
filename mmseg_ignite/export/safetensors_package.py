"""A trained model as safetensors files, which all tools open like a checkpoint and which hold no code, and its config.

The files state the patients of the training by the names of the data set, since tests on these patients are refused.
"""

from pathlib import Path

import torch
from mmseg.models.segmentors import EncoderDecoder

from ..engine.checkpoints import open_checkpoint, write_safetensors
from ..engine.ensembles import write_ensemble
from ..engine.training_record import KEY
from ..errors import IgniteError
from .machine_paths import portable_config
from .model_card import FILE as CARD
from .packages import Exported

CONFIG, WEIGHTS, ENSEMBLE, MEMBER = 'config.py', 'model.safetensors', 'ensemble.json', 'member{}.safetensors'
_MAX_MEMBERS = 64
FILES = (CONFIG, WEIGHTS, ENSEMBLE, *map(MEMBER.format, range(_MAX_MEMBERS)), CARD)
_KEPT = (KEY, 'dataset_meta', 'epoch', 'iter', 'seed', 'mmengine_version')
"""Parts of a checkpoint's ``meta`` that are written; the others have paths of the machine."""


def check(exported: Exported) -> None:
    """Raise IgniteError if the model cannot be written as safetensors."""
    if exported.config is None:
        raise IgniteError(
            'the model has no config, which the safetensors package needs: export it with tools/export.py.'
        )


def write(folder: Path, exported: Exported) -> None:
    """Write weights, training record, config and model card into an empty folder; compare the weights with the model.

    Raises:
        IgniteError: a written tensor differs from the model's.
    """
    members = list(getattr(exported.model, 'members', [exported.model]))
    single = len(members) == 1
    names = [WEIGHTS] if single else [MEMBER.format(number) for number in range(len(members))]
    for name, member, meta in zip(names, members, exported.metas, strict=True):
        weights = _weights(member)
        write_safetensors(folder / name, weights, {key: meta[key] for key in _KEPT if key in meta})
        _compare(folder / name, weights)
    if not single:
        write_ensemble(folder / ENSEMBLE, [folder / name for name in names], exported.patients)
    checkpoint = names[0] if single else ENSEMBLE
    (folder / CONFIG).write_text(portable_config(exported.config, exported.description.name), encoding='utf-8')
    (folder / CARD).write_text(exported.card + _files(names, checkpoint), encoding='utf-8')
    tensors = sum(map(len, map(_weights, members)))
    exported.report(
        f'safetensors: all {tensors:,} tensors are those of the model; the files name the patients of the training, by the '
        'names of the data set'
    )


def _weights(member: EncoderDecoder) -> dict[str, torch.Tensor]:
    """Return the weights of one network; the first member of an ensemble holds the others."""
    return {key: value for key, value in member.state_dict().items() if not key.startswith('others.')}


def _compare(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Raise IgniteError unless a written file has exactly the weights of the model."""
    found = open_checkpoint(path)['state_dict']
    wrong = [
        key
        for key in found.keys() | weights.keys()
        if key not in found
        or key not in weights
        or found[key].dtype != weights[key].dtype
        or not torch.equal(found[key], weights[key])
    ]
    if wrong:
        raise IgniteError(
            f'{path.name} does not have the weights of the model ({len(wrong)} differ, e.g. {sorted(wrong)[0]}); equal '
            'weights were expected: it was discarded, check the disk and export again.'
        )


def _files(names: list[str], checkpoint: str) -> str:
    """Return the part of the model card about the files of the package."""
    weights = f'`{names[0]}`' if len(names) == 1 else f'`{names[0]}` to `{names[-1]}`, listed by `{ENSEMBLE}`'
    return (
        f'\n## Files\n- `{CONFIG}`: the config. Set `data_root` to your prepared data set.\n'
        f'- {weights}: weights and the record of the training. The record names the patients of the training by their names '
        'in the data set, so that tests on them are refused. Remove them only if the model is never tested again.\n\n'
        f'      python tools/test.py {CONFIG} {checkpoint} --cfg-options data_root=DATA\n'
        f'      python tools/predict.py {CONFIG} {checkpoint} IMAGES --out predictions\n'
    )
