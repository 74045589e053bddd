"""Initial weights of the encoder (MiT-B0..B5, ImageNet-1k): downloaded with a checksum, read from a file, or random."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmseg.registry import MODELS

from ..errors import IgniteError
from ..files import atomic_file, printable, sha256, writing
from ..models.weight_names import convert, layout_of
from .checkpoints import open_checkpoint
from .checkpoints.opening import fits
from .checkpoints.remote import local_file
from .checkpoints.writing import save_tensors
from .training_record import TrainingRecord

_HUGGING_FACE = ('model.safetensors', 'pytorch_model.bin')
"""Names of the weights in a folder of Hugging Face."""
_REMEDY = 'pass the file with --weights FILE, or train from random weights with --weights none'


def _check_hash(path: Path) -> None:
    """Check a file against the first eight hex digits of its SHA-256, with which OpenMMLab's file names end."""
    expected = re.search(r'-([0-9a-f]{8})\.pth$', path.name)
    if expected and (found := sha256(path)[:8]) != expected[1]:
        raise IgniteError(
            f'{path} has the SHA-256 {found}..., but its name states {expected[1]}...: delete it and download '
            'it again, or rename it if it contains other weights.'
        )


def set_encoder_weights(cfg: Config, choice: str | None) -> None:
    """Choose the initial weights of a config's encoder, and check them before anything is built.

    A file (.pth, .bin, .safetensors) may contain an encoder or a whole segmentor, with the names of mmseg, of SegFormer's
    authors (``mit_b0.pth``) or of Hugging Face (``nvidia/mit-b0``), see :mod:`mmseg_ignite.models.weight_names`.

    A class of encoders with a method ``check_weights``, such as :class:`TimmEncoder <mmseg_ignite.models.TimmEncoder>`, says
    itself what its files contain.

    Args:
        cfg: its ``model.backbone.init_cfg`` is changed in place.
        choice: None for the weights of the config, 'none' for random weights, a folder of Hugging Face (``config.json`` and
            ``model.safetensors`` or ``pytorch_model.bin``), or a file or address, see :func:`.checkpoints.remote.local_file`.

    Raises:
        IgniteError: the file is missing, damaged or does not contain this encoder, or cannot be downloaded.
    """
    backbone = cfg.model.backbone
    if choice == 'none':
        backbone.init_cfg = None
    elif choice is not None:
        backbone.init_cfg = dict(type='Pretrained', checkpoint=str(choice))
    source = (backbone.get('init_cfg') or {}).get('checkpoint')
    if source is None and backbone.get('frozen'):
        raise IgniteError(
            'a frozen encoder with random weights learns nothing: pass its file with --weights FILE, or train it with '
            '--cfg-options model.backbone.frozen=False.'
        )
    if source is None:
        return
    path = weights_file(local_file(source, _REMEDY))
    if choice is None and not path.is_file():
        raise IgniteError(f'{path} is not a file, and the config starts from these weights: {_REMEDY}.')
    content = open_checkpoint(path)
    _check_hash(path)
    weights = content.get('state_dict', content)
    check = getattr(MODELS.get(backbone.type), 'check_weights', None)
    if check is not None:  # it converts names itself when it loads the file
        check(backbone, weights, path)
        backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
        return
    if layout_of(weights) in ('authors', 'huggingface'):
        weights, _ = convert(weights, 'mmseg', path, encoder_only=True)
        path = Path(cfg.work_dir) / 'encoder_weights.pth'
        _check_encoder(weights, cfg, Path(source))
        with writing(path, 'free some space or correct the permissions'), atomic_file(path) as partial:
            save_tensors(dict(state_dict=weights, meta=content.get('meta') or {}), partial)
    else:
        _check_encoder(weights, cfg, path)
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in weights) else None
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), **({'prefix': prefix} if prefix else {}))


def weights_file(path: Path) -> Path:
    """Return the file with the weights: a file itself, or that in a folder of Hugging Face.

    Raises:
        IgniteError: the folder has no such file, or its weights are in several.
    """
    if not os.path.isdir(path):  # unlike Path.is_dir, also for a name that is too long
        return path
    for name in _HUGGING_FACE:
        if (path / name).is_file():
            return path / name
        if (path / f'{name}.index.json').exists():
            raise IgniteError(f'{path} has its weights in several files; one {name} was expected: save it as one file.')
    raise IgniteError(f'{path} is a folder without {" or ".join(_HUGGING_FACE)}: name a file of weights.')


def inherit_records(cfg: Config) -> None:
    """Record the patients that the initial weights of a model have seen, as ``inherited_record`` of the config.

    Every file in an ``init_cfg`` or ``pretrained`` of the model is read, also one with an address.

    Raises:
        IgniteError: such a file is missing or damaged, or cannot be downloaded.
    """
    inherited = None
    for source in dict.fromkeys(_sources(cfg.model)):
        record = TrainingRecord.of_meta(open_checkpoint(local_file(source)).get('meta'))
        inherited = inherited if record is None else record.following(inherited)
    if inherited is not None:
        cfg.inherited_record = inherited.as_meta()


def _sources(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str) and (
                key == 'pretrained' or (key == 'checkpoint' and node.get('type') == 'Pretrained')
            ):
                yield value
            else:
                yield from _sources(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _sources(item)


def _check_encoder(weights: dict[str, torch.Tensor], cfg: Config, path: Path) -> None:
    own = MODELS.build({**cfg.model.backbone, 'init_cfg': None}).state_dict()
    weights = {key.removeprefix('backbone.'): value for key, value in weights.items()}
    wrong = [key for key in own if not fits(weights.get(key), own[key])]
    if not wrong:
        return
    raise IgniteError(
        f'{printable(path)} does not contain weights for this {cfg.model.backbone.type} ({len(wrong)} of {len(own)} are '
        f'missing or of another shape or type, e.g. {wrong[0]}): use the file of the same MiT size.'
    )
