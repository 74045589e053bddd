from .segformer_head import FastSegformerHead

__all__ = ['FastSegformerHead']
