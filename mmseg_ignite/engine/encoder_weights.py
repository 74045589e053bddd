"""Initial weights of the encoder (MiT-B0..B5, ImageNet-1k): downloaded with a checksum, read from a file, or random."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import Tensor

from ..errors import IgniteError
from ..files import atomic_file, sha256
from .checkpoints import open_checkpoint
from .checkpoints.remote import local_file
from .training_record import TrainingRecord

_BLOCKS = {
    'norm1': 'norm1',
    'norm2': 'norm2',
    'attn.q': 'attn.attn.in_proj_q',
    'attn.kv': 'attn.attn.in_proj_kv',
    'attn.proj': 'attn.attn.out_proj',
    'attn.sr': 'attn.sr',
    'attn.norm': 'attn.norm',
    'mlp.fc1': 'ffn.layers.0',
    'mlp.dwconv.dwconv': 'ffn.layers.1',
    'mlp.fc2': 'ffn.layers.4',
}
"""Layers in the names of SegFormer's authors, and in those of mmseg."""
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

    A file may contain an encoder or a whole segmentor, with the names of mmseg or of SegFormer's authors (``mit_b0.pth``).

    A class of encoders with a method ``check_weights``, such as :class:`TimmEncoder <mmseg_ignite.models.TimmEncoder>`, says
    itself what its files contain.

    Args:
        cfg: its ``model.backbone.init_cfg`` is changed in place.
        choice: None for the weights of the config, 'none' for random weights, or a file or address, see
            :func:`.checkpoints.remote.local_file`.

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
    path = local_file(source, _REMEDY)
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
    if _is_original(weights):
        weights, path = _from_original(weights), Path(cfg.work_dir) / 'encoder_weights.pth'
        _check_encoder(weights, cfg, Path(source))
        with atomic_file(path) as partial:
            torch.save(dict(state_dict=weights, meta=content.get('meta') or {}), partial)
    else:
        _check_encoder(weights, cfg, path)
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in weights) else None
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), **({'prefix': prefix} if prefix else {}))


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
    wrong = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
    if not wrong:
        return
    if _is_hugging_face(weights):
        raise IgniteError(
            f"{path} has the names of Hugging Face's SegformerModel, which are not supported yet: use the file of OpenMMLab "
            'or of the authors for the same MiT size.'
        )
    raise IgniteError(
        f'{path} does not contain weights for this {cfg.model.backbone.type} ({len(wrong)} of {len(own)} are '
        f'missing or of another shape, e.g. {wrong[0]}): use the file of the same MiT size.'
    )


def _is_original(weights: dict[str, Tensor]) -> bool:
    """Return whether a state dict has the authors' names (NVlabs/SegFormer, ``mit_b0.pth`` to ``mit_b5.pth``)."""
    return any(re.match(r'(backbone\.)?patch_embed1\.proj\.', name) for name in weights)


def _is_hugging_face(weights: dict[str, Tensor]) -> bool:
    """Return whether a state dict has the names of transformers' SegformerModel."""
    return any('encoder.patch_embeddings.' in name for name in weights)


def _from_original(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert an encoder with the authors' names to a state dict of mmseg's MixVisionTransformer.

    Linear layers of the feed-forward part become 1 x 1 convolutions; queries, keys and values are concatenated in this
    order. The classifier and any decode head are dropped.
    """
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        name = name.removeprefix('module.').removeprefix('backbone.')
        if found := re.fullmatch(r'patch_embed(\d)\.(proj|norm)\.(\w+)', name):
            part = {'proj': 'projection', 'norm': 'norm'}[found[2]]
            result[f'layers.{int(found[1]) - 1}.0.{part}.{found[3]}'] = value
        elif found := re.fullmatch(r'norm(\d)\.(\w+)', name):
            result[f'layers.{int(found[1]) - 1}.2.{found[2]}'] = value
        elif (found := re.fullmatch(r'block(\d)\.(\d+)\.(.+)\.(\w+)', name)) and found[3] in _BLOCKS:
            part = _BLOCKS[found[3]]
            if part in ('ffn.layers.0', 'ffn.layers.4') and found[4] == 'weight' and value.ndim == 2:
                value = value[:, :, None, None]
            result[f'layers.{int(found[1]) - 1}.1.{found[2]}.{part}.{found[4]}'] = value
    for name in [name for name in result if '.in_proj_q.' in name]:
        both = torch.cat([result.pop(name), result.pop(name.replace('_q.', '_kv.'))])
        result[name.replace('in_proj_q.', 'in_proj_')] = both
    return result
