"""Converting the weight names of SegFormer's authors to those of mmseg."""

import re

import torch
from torch import Tensor

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


def is_original(weights: dict[str, Tensor]) -> bool:
    """Return whether a state dict has the authors' names (NVlabs/SegFormer, ``mit_b0.pth`` to ``mit_b5.pth``)."""
    return any(re.match(r'(backbone\.)?patch_embed1\.proj\.', name) for name in weights)


def is_hugging_face(weights: dict[str, Tensor]) -> bool:
    """Return whether a state dict has the names of transformers' SegformerModel."""
    return any('encoder.patch_embeddings.' in name for name in weights)


def from_original(weights: dict[str, Tensor]) -> dict[str, Tensor]:
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
