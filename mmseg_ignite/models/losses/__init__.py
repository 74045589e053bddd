from .resized_loss import ResizedLoss, resized_loss
from .tissue_loss import TissueLoss

__all__ = ['ResizedLoss', 'TissueLoss', 'resized_loss']
