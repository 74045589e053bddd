"""Weights of timm's encoders: the names of other projects, and which of them do not fit."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import IgniteError

_SHOWN = 3
_TRANSFORMERS = (
    (r'embeddings\.position_embeddings', 'pos_embed'),
    (r'embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'embeddings\.', ''),
    (r'encoder\.layer\.', 'blocks.'),
    (r'\.attention\.output\.dense\.', '.attn.proj.'),
    (r'\.layer_scale(\d)\.lambda1', r'.ls\1.gamma'),
    (r'\.mlp\.weights_in\.', '.mlp.w12.'),
    (r'\.mlp\.weights_out\.', '.mlp.w3.'),
    (r'^layernorm\.', 'norm.'),
)
"""Patterns of the names of transformers' Dinov2Model and Dinov2WithRegistersModel, and those of DINOv2."""
_QKV = re.compile(r'(.*)\.attention\.attention\.query\.(weight|bias)')


def fitting_encoder(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Return the weights of a file by the names of a TimmEncoder.

    The file has an encoder with the names of timm, of DINOv2's authors (as Hibou's ``hibou-b.pth``) or of transformers'
    Dinov2WithRegistersModel (as Hibou's ``model.safetensors``), or a whole segmentor of this package.

    Args:
        weights: ``state_dict`` of the file.
        own: ``state_dict`` of a TimmEncoder; tensors may be on the meta device. An adapter of a file that has none keeps its
            weights.
        source: name of the file, for messages.

    Raises:
        IgniteError: weights are missing, have another shape, or are those of a deeper encoder; it names some of them.
    """
    found = {str(key).removeprefix('module.'): value for key, value in weights.items()}
    if any(key.startswith('backbone.') for key in found):
        found = {key.removeprefix('backbone.'): v for key, v in found.items() if key.startswith('backbone.')}
    if not any(key in own for key in found):
        found = _timm_names(found, own)
    needed = [key for key in own if key.startswith('model.') or any(other.startswith('adapter.') for other in found)]
    wrong = [_difference(key, own[key], found.get(key)) for key in needed if not _fits(own[key], found.get(key))]
    blocks = sorted({key.split('.')[2] for key in own if key.startswith('model.blocks.')}, key=int)
    deeper = {key for key in found if key.startswith('model.blocks.') and key.split('.')[2] not in blocks}
    if wrong:
        shown = ', '.join(wrong[:_SHOWN]) + (', ...' if len(wrong) > _SHOWN else '')
        raise IgniteError(
            f'{source} does not contain the weights of this encoder: {len(wrong)} of {len(needed)} do not fit ({shown}): use '
            'the file of the same encoder, or correct model_name and model_args of the backbone.'
        )
    if deeper:
        raise IgniteError(
            f'{source} contains a deeper encoder (e.g. {min(deeper).removeprefix("model.")}, and {len(blocks)} blocks were '
            'expected): use the file of the same encoder, or correct model_name and model_args of the backbone.'
        )
    return {key: found[key] for key in needed}


def _fits(own: Tensor, found: Tensor | None) -> bool:
    return found is not None and found.shape == own.shape and found.is_floating_point() == own.is_floating_point()


def _difference(key: str, own: Tensor, found: Tensor | None) -> str:
    name = key.removeprefix('model.')
    return f'{name} is missing' if found is None else f'{name} is {tuple(found.shape)}, not {tuple(own.shape)}'


def _timm_names(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an encoder of timm, DINOv2 or transformers to the names of a TimmEncoder."""
    if any(key.endswith('embeddings.cls_token') for key in weights):
        weights = _from_transformers(weights)
    if 'register_tokens' in weights or any('.mlp.w12.' in key for key in weights):
        weights = _from_dinov2(weights)
    named = {}
    for key, value in weights.items():
        flat = re.sub(r'^(\w+)\.(\d+)\.', r'\1_\2.', key)  # as timm's FeatureListNet renames the stages of a CNN
        named[f'model.{flat if f"model.{flat}" in own else key}'] = value
    return named


def _from_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the names of DINOv2; queries, keys and values are concatenated in this order."""
    prefix = next(key for key in weights if key.endswith('embeddings.cls_token')).removesuffix('embeddings.cls_token')
    weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    result = {}
    for key, value in weights.items():
        if match := _QKV.fullmatch(key):
            parts = [weights.get(key.replace('.query.', f'.{part}.')) for part in ('query', 'key', 'value')]
            if all(part is not None and part.ndim and part.shape == value.shape for part in parts):
                key, value = f'{match[1]}.attn.qkv.{match[2]}', torch.cat(parts)
        elif '.attention.attention.' in key:
            continue
        for pattern, name in _TRANSFORMERS:
            key = re.sub(pattern, name, key)
        result[key] = value
    return result


def _from_dinov2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with timm's names.

    timm adds the position embedding of the class token to the token itself if there are registers.
    """
    result = {
        key.replace('.mlp.w12.', '.mlp.fc1.').replace('.mlp.w3.', '.mlp.fc2.'): value for key, value in weights.items()
    }
    result.pop('mask_token', None)
    token, positions = result.get('cls_token'), result.get('pos_embed')
    is_fitting = token is not None and positions is not None and positions.ndim == token.ndim == 3
    if 'register_tokens' in result and is_fitting and positions.shape[2] == token.shape[2] and positions.shape[1]:
        result['reg_token'] = result.pop('register_tokens')
        result['cls_token'], result['pos_embed'] = token + positions[:, :1], positions[:, 1:]
    return result
