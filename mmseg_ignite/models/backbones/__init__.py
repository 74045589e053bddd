from .mix_transformer import FastMixVisionTransformer
from .spatial_adapter import SpatialAdapter
from .timm_encoder import TimmEncoder

__all__ = ['FastMixVisionTransformer', 'SpatialAdapter', 'TimmEncoder']
