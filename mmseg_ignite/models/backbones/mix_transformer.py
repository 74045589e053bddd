"""MiT, the encoder of SegFormer, with the weights of mmseg's and less work.

What costs time in the stock forward is not its arithmetic: attention goes through ``nn.MultiheadAttention``, which stores the
attention matrix and averages it, and every change between tokens and maps copies. Here attention is
``scaled_dot_product_attention``, 1 x 1 convolutions are the matrix products that they are, and tokens (N, H * W, C) and
channels-last maps (N, C, H, W) are the same memory seen in two ways.
"""

import torch
import torch.nn.functional as F
from mmseg.models.backbones import MixVisionTransformer
from mmseg.models.backbones.mit import EfficientMultiheadAttention, MixFFN, TransformerEncoderLayer
from mmseg.registry import MODELS
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@MODELS.register_module()
class FastMixVisionTransformer(MixVisionTransformer):
    """mmseg's MixVisionTransformer (Xie et al. 2021), faster; arguments, weights and outputs are those of stock.

    The modules and so the state dict are mmseg's own; only how they are applied differs. Works with AMP, DDP,
    ``torch.compile``, gradient checkpointing (``with_cp``) and inputs of any size.

    Returns:
        list[Tensor]: the maps of the stages in ``out_indices``, (N, C_i, H_i, W_i), channels-last.
    """

    def forward(self, x: Tensor) -> 'list[Tensor]':
        """Encode images (N, 3, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        outs = []
        for number, (embed, blocks, norm) in enumerate(self.layers):
            x, size = embed(x)
            for block in blocks:
                if block.with_cp and x.requires_grad:
                    x = checkpoint(_block, block, x, size, use_reentrant=False)
                else:
                    x = _block(block, x, size)
            x = _as_map(norm(x), size)
            if number in self.out_indices:
                outs.append(x)
        return outs


def _as_map(x: Tensor, size: 'tuple[int, int]') -> Tensor:
    """Tokens (N, L, C) as a channels-last map (N, C, H, W); no copy if they are contiguous."""
    return x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def _as_tokens(x: Tensor) -> Tensor:
    """A map as tokens; no copy if it is channels-last."""
    return x.flatten(2).transpose(1, 2)


def _block(block: TransformerEncoderLayer, x: Tensor, size: 'tuple[int, int]') -> Tensor:
    x = x + _attention(block.attn, block.norm1(x), size)
    return x + _mix_ffn(block.ffn, block.norm2(x), size)


def _attention(module: EfficientMultiheadAttention, x: Tensor, size: 'tuple[int, int]') -> Tensor:
    """Efficient self-attention: keys and values from a map reduced by ``sr_ratio``. (N, L, C) to (N, L, C)."""
    attn = module.attn
    reduced = module.norm(_as_tokens(module.sr(_as_map(x, size)))) if module.sr_ratio > 1 else x
    channels, heads = attn.embed_dim, attn.num_heads
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    query = F.linear(x, weight[:channels], None if bias is None else bias[:channels])
    both = F.linear(reduced, weight[channels:], None if bias is None else bias[channels:])
    query = query.unflatten(2, (heads, -1)).transpose(1, 2)
    key, value = both.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value, dropout_p=attn.dropout if module.training else 0.0)
    out = attn.out_proj(out.transpose(1, 2).flatten(2))
    return module.dropout_layer(module.proj_drop(out))


def _mix_ffn(module: MixFFN, x: Tensor, size: 'tuple[int, int]') -> Tensor:
    """1 x 1 convolution, 3 x 3 depth-wise convolution, GELU, 1 x 1 convolution. (N, L, C) to (N, L, C)."""
    fc1, depthwise, activate, drop, fc2, drop2 = module.layers
    x = F.linear(x, fc1.weight.flatten(1), fc1.bias)
    x = drop(activate(_as_tokens(depthwise(_as_map(x, size)))))
    return module.dropout_layer(drop2(F.linear(x, fc2.weight.flatten(1), fc2.bias)))
