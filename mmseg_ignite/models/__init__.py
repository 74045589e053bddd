"""SegFormer with mmseg's weights and less work."""

from .backbones import FastMixVisionTransformer
from .decode_heads import FastSegformerHead
from .segmentors import TissueEnsemble, TissueSegmentor

__all__ = [
    'FastMixVisionTransformer',
    'FastSegformerHead',
    'TissueEnsemble',
    'TissueSegmentor',
]
