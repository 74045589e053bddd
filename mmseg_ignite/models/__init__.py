"""SegFormer with the weights of mmseg's and a faster implementation."""

from .backbones import FastMixVisionTransformer
from .data_preprocessor import TissueDataPreProcessor
from .decode_heads import FastSegformerHead
from .normalisation import ProcessBatchNorm
from .segmentors import TissueEnsemble, TissueSegmentor

__all__ = [
    'FastMixVisionTransformer',
    'FastSegformerHead',
    'ProcessBatchNorm',
    'TissueDataPreProcessor',
    'TissueEnsemble',
    'TissueSegmentor',
]
