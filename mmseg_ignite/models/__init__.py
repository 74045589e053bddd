"""SegFormer with the weights of mmseg's and a faster implementation, and encoders of timm."""

from .backbones import FastMixVisionTransformer, SpatialAdapter, TimmEncoder
from .data_preprocessor import TissueDataPreProcessor
from .decode_heads import FastSegformerHead
from .normalisation import ProcessBatchNorm
from .segmentors import TissueEnsemble, TissueSegmentor

__all__ = [
    'FastMixVisionTransformer',
    'FastSegformerHead',
    'ProcessBatchNorm',
    'SpatialAdapter',
    'TimmEncoder',
    'TissueDataPreProcessor',
    'TissueEnsemble',
    'TissueSegmentor',
]
