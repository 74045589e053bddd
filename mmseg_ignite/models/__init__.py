"""SegFormer with mmseg's weights and less work, and the ImageNet weights of its encoders."""

from .backbones import FastMixVisionTransformer
from .decode_heads import FastSegformerHead
from .segmentors import TissueEnsemble, TissueSegmentor
from .weights import set_encoder_weights

__all__ = [
    'FastMixVisionTransformer',
    'FastSegformerHead',
    'TissueEnsemble',
    'TissueSegmentor',
    'set_encoder_weights',
]
