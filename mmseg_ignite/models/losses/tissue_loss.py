"""The loss function of the default configs."""

from collections.abc import Sequence

import numpy as np
import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...errors import IgniteError
from .resized_loss import ResizedLoss, resized_loss


@MODELS.register_module()
class TissueLoss(nn.Module):
    """Cross-entropy or focal loss plus soft Dice over the batch, on annotated pixels; for any decode head of mmseg.

    Pixels of ``ignore_index`` are excluded from both terms, classes without a pixel in the batch from Dice, and a batch
    without annotated pixels gives 0. See :func:`resized_loss` for the formulas; with FastSegformerHead it also saves memory.
    In distributed training, each process computes Dice over its own batch.

    Args:
        cross_entropy, dice: Weights of the two terms.
        temperature: Weight each class's cross-entropy in proportion to 1 / pixels ** temperature, 0..4; 0 weights all classes
            equally.
        class_weight: Fixed weights, one per class, instead.
        gamma: Exponent of the focal loss, at least 1, or 0 for cross-entropy.
        smooth: Constant added to numerator and denominator of Dice, in pixels.
        loss_name: Name in the log; must start with 'loss_' to be optimised.
        class_pixels: Pixels of each class in the training ROIs, required with a temperature. tools/train.py fills them in;
            in other programs pass ``IGNITEDataset(data_root=..., split='train').class_pixels.tolist()``.

    Raises:
        IgniteError: An argument is out of range.

    Example:
        In a config: ``loss_decode=dict(type='TissueLoss', dice=0.5)``.
    """

    def __init__(
        self,
        cross_entropy: float = 1.0,
        dice: float = 1.0,
        temperature: float = 0.0,
        class_weight: Sequence[float] | None = None,
        gamma: float = 0.0,
        smooth: float = 1.0,
        loss_name: str = 'loss_tissue',
        class_pixels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, holds, expected in (
            ('cross_entropy and dice', min(cross_entropy, dice) >= 0 < max(cross_entropy, dice), 'one above 0'),
            ('temperature', 0 <= temperature <= 4, '0 to 4'),
            ('temperature and class_weight', not temperature or class_weight is None, 'one of the two'),
            ('gamma', gamma == 0 or gamma >= 1, '0 or at least 1'),
            ('smooth', smooth >= 0, '0 or more'),
        ):
            if not holds:
                raise IgniteError(f'TissueLoss has an invalid {name}; {expected} was expected: correct loss_decode.')
        self.cross_entropy, self.dice, self.gamma, self.smooth = cross_entropy, dice, gamma, smooth
        self.temperature, self.loss_name = temperature, loss_name
        if temperature and class_pixels is not None:
            class_weight = class_weights(class_pixels, temperature)
        # Not in checkpoints: it follows from the config and the data.
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer('class_weight', weight, persistent=False)

    def score(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, **geometry: object) -> ResizedLoss:
        """Compute both terms for logits (N, C, h, w) resized to the labels (N, H, W), see :func:`resized_loss`."""
        if self.temperature and self.class_weight is None:
            raise IgniteError(
                f'TissueLoss has temperature={self.temperature}, which requires class_pixels: train with tools/train.py, '
                'which fills them in, or give the pixels of each class in the training ROIs.'
            )
        if self.class_weight is not None and len(self.class_weight) != logits.shape[1]:
            raise IgniteError(
                f'TissueLoss has {len(self.class_weight)} class weights, the network has {logits.shape[1]} classes: give '
                'one per class.'
            )
        settings = (self.cross_entropy, self.dice, self.class_weight, self.gamma, self.smooth)
        return resized_loss(logits, labels, *settings, weight=weight, **geometry)

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255, **kwargs: object
    ) -> Tensor:
        """Compute the scalar loss for mmseg's heads.

        ``cls_score`` are (N, C, H, W) logits, ``label`` (N, H, W) integers 0..C-1 or ``ignore_index``, and ``weight``
        (N, H, W) the weights of pixels from a pixel sampler.
        """
        if kwargs:
            raise IgniteError(f'TissueLoss does not support {", ".join(kwargs)}: omit it.')
        return self.score(cls_score, label, weight, ignore_index=ignore_index).total

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        names = ('cross_entropy', 'dice', 'temperature', 'gamma', 'smooth')
        return ', '.join(f'{name}={getattr(self, name)}' for name in names)


def class_weights(pixels: Sequence[int], temperature: float) -> list[float]:
    """Return the weight of each class, proportional to 1 / pixels ** temperature.

    A pixel weighs 1 on average over the training data; a class without pixels weighs 0, IgniteError if none has any.
    """
    pixels = np.asarray(pixels, np.float64)
    if not pixels.any():
        raise IgniteError('the training data have no annotated pixel: prepare other ROIs.')
    weight = np.where(pixels > 0, np.maximum(pixels, 1) ** -temperature, 0)
    return (weight * pixels.sum() / (weight * pixels).sum()).tolist()
