"""Small SegFormers with the depths and ratios of MiT-B0 and MiT-B2, in this package and in transformers."""

import torch
from conftest import DEMO_CONFIG
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_ignite.apis import load_config

DEPTHS = {'B0': (2, 2, 2, 2), 'B2': (3, 4, 6, 3)}
WIDTHS, CHANNELS, CLASSES = (8, 16, 40, 64), 24, 16


def randomised(model):
    """Give a model random weights, also in normalisations, and return it in evaluation mode."""
    for module in model.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if 'norm' in type(module).__name__.lower() and value.is_floating_point():
                torch.nn.init.uniform_(value, 0.5, 1.5) if name != 'bias' else torch.nn.init.normal_(value, std=0.3)
            elif value.is_floating_point() and value.ndim > 1:
                torch.nn.init.normal_(value, std=(1 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                torch.nn.init.normal_(value, std=0.1)
    return model.eval()


def tiny_config(plain=True, depths='B0'):
    """Return the demo config with a small model."""
    cfg = load_config(DEMO_CONFIG)
    cfg.model.backbone.update(embed_dims=8, num_layers=list(DEPTHS[depths]), init_cfg=None)
    cfg.model.decode_head.update(in_channels=list(WIDTHS), channels=CHANNELS, plain=plain, norm_cfg=dict(type='BN'))
    return cfg


def tiny_segformer(plain=True, depths='B0'):
    """Return a small segmentor of this package."""
    init_default_scope('mmseg')
    return randomised(MODELS.build(tiny_config(plain, depths).model))


def theirs(kind, depths='B0'):
    """Return a small model of transformers: 'SegformerModel', 'SegformerForSemanticSegmentation', ..."""
    import transformers

    config = transformers.SegformerConfig(
        depths=DEPTHS[depths], hidden_sizes=WIDTHS, num_attention_heads=(1, 2, 5, 8), decoder_hidden_size=CHANNELS,
        num_labels=CLASSES,
    )  # fmt: skip
    return randomised(getattr(transformers, kind)(config))


def logits(model, x):
    """Compute the logits of a segmentor of this package from normalised images."""
    return model.decode_head(model.backbone(x))


def our_epsilon(model):
    """Give the layer normalisations of a model of transformers mmseg's epsilon: its config cannot, it is always 1e-5.

    With eight channels the difference may exceed 1e-4 where their variance is small.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return model
