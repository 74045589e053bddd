"""Model parts: the ImageNet weights of the MiT encoders."""

from .weights import set_encoder_weights

__all__ = ['set_encoder_weights']
