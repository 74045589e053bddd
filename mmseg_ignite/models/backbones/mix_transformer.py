"""MiT, the encoder of SegFormer, with the weights of mmseg's and a faster forward pass.

mmseg's attention uses ``nn.MultiheadAttention``, which stores and averages the attention matrix, and each conversion between
tokens and maps copies. Here attention is ``scaled_dot_product_attention``, and tokens (N, H * W, C) and channels-last maps
(N, C, H, W) are views of the same memory.
"""

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmseg.models.backbones import MixVisionTransformer
from mmseg.models.backbones.mit import EfficientMultiheadAttention, TransformerEncoderLayer
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..fusion import convolve_and_activate


@MODELS.register_module()
class FastMixVisionTransformer(MixVisionTransformer):
    """Faster MixVisionTransformer (Xie et al. 2021) with the arguments, weights and outputs of mmseg's.

    Only the forward pass differs. Works with AMP, DDP, ``torch.compile``, ``with_cp`` and inputs of any size.

    Example:
        >>> maps = FastMixVisionTransformer(embed_dims=32, num_heads=[1, 2, 5, 8])(torch.rand(1, 3, 512, 512))
        >>> [tuple(m.shape) for m in maps]
        [(1, 32, 128, 128), (1, 64, 64, 64), (1, 160, 32, 32), (1, 256, 16, 16)]
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode images (N, 3, H, W) as channels-last maps (N, C_i, H_i, W_i) of the stages in ``out_indices``."""
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for embed, blocks, norm in self.layers:
            x, size = embed(x)
            for block in blocks:
                if block.with_cp and x.requires_grad:
                    x = checkpoint(_block, block, x, size, use_reentrant=False)
                else:
                    x = _block(block, x, size)
            maps.append(x := _as_map(norm(x), size))
        return [x for number, x in enumerate(maps) if number in self.out_indices]


def _as_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """View tokens (N, L, C) as a channels-last map (N, C, H, W); copies only if they are not contiguous."""
    return x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def _as_tokens(x: Tensor) -> Tensor:
    """View a map as tokens; copies only if it is not channels-last."""
    return x.flatten(2).transpose(1, 2)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer to the channels of a map; oneDNN's convolution is faster than MKL's product on AMD processors."""
    return F.conv2d(x, weight.flatten(1)[:, :, None, None], bias)


def _block(block: TransformerEncoderLayer, x: Tensor, size: tuple[int, int]) -> Tensor:
    x = _attention(block.attn, block.norm1(x), x, size)
    branch = _mix_ffn(block.ffn.layers, _as_map(block.norm2(x), size))
    return _residual(x, _as_tokens(branch), block.ffn.dropout_layer)


def _mix_ffn(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution, a 3 x 3 depth-wise convolution, GELU, and a 1 x 1 convolution to a map."""
    widen, positions, activation, dropout, narrow, last_dropout = layers
    x = convolve_and_activate(widen(x), positions.weight, positions.bias, activation, 1, positions.groups)
    return last_dropout(narrow(dropout(x)))


def _attention(module: EfficientMultiheadAttention, x: Tensor, identity: Tensor, size: tuple[int, int]) -> Tensor:
    """Apply efficient self-attention, with keys and values from a map reduced by ``sr_ratio``: (N, L, C) to (N, L, C)."""
    attn, x = module.attn, _as_map(x, size)
    reduced = x if module.sr_ratio == 1 else _as_map(module.norm(_as_tokens(y := module.sr(x))), y.shape[2:])
    channels, heads = attn.embed_dim, attn.num_heads
    # Split rather than sliced, because the gradient of each slice would be a tensor of the size of the whole.
    weights = attn.in_proj_weight.split((channels, 2 * channels))
    biases = (None, None) if attn.in_proj_bias is None else attn.in_proj_bias.split((channels, 2 * channels))
    query, key_value = (_pointwise(*each) for each in zip((x, reduced), weights, biases))
    query = _as_tokens(query).unflatten(2, (heads, -1)).transpose(1, 2)
    key, value = _as_tokens(key_value).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    if torch.jit.is_tracing():  # the signature of scaled_dot_product_attention differs between versions of torch
        out = (query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)).softmax(-1) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=attn.dropout if module.training else 0.0)
    out = _pointwise(_as_map(out.transpose(1, 2).flatten(2), size), attn.out_proj.weight, attn.out_proj.bias)
    return _residual(identity, module.proj_drop(_as_tokens(out)), module.dropout_layer)


def _residual(identity: Tensor, branch: Tensor, dropout: nn.Module) -> Tensor:
    """Add the branch, dropped for random samples, in one pass with the same random numbers as DropPath."""
    if not isinstance(dropout, DropPath):
        return identity + dropout(branch)
    if not dropout.training or dropout.drop_prob == 0:
        return identity + branch
    keep = 1 - dropout.drop_prob
    mask = keep + torch.rand((len(branch), 1, 1), dtype=branch.dtype, device=branch.device)
    return torch.addcmul(identity, branch, mask.floor() / keep)
