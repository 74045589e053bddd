from .mix_transformer import FastMixVisionTransformer

__all__ = ['FastMixVisionTransformer']
