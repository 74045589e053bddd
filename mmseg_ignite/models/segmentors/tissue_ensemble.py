"""An ensemble of trained networks with one architecture."""

import copy
from collections.abc import Callable

import torch
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ...errors import IgniteError
from .tissue_segmentor import TissueSegmentor


@MODELS.register_module()
class TissueEnsemble(TissueSegmentor):
    """A TissueSegmentor whose logits are the logarithm of the mean of its members' probabilities.

    ``test_cfg`` works as with a single network. Members predict one after the other, so the extra memory is the float32 sum
    of their probabilities for one batch of windows. An ensemble of one returns the logits of its member.

    Args:
        size: Number of members. Each is built from the other arguments, which are those of TissueSegmentor.

    Raises:
        IgniteError: The size is below 1, the decode head has one output channel, or the ensemble is trained.

    Example:
        ``python tools/test.py CONFIG ensemble.json`` builds it from the checkpoints listed in the file.
    """

    def __init__(self, *args: object, size: int, **kwargs: object) -> None:
        if type(size) is not int or size < 1:
            raise IgniteError(f'the size of TissueEnsemble is {size!r}; an integer above 0 was expected: correct it.')
        others = [copy.deepcopy((args, kwargs)) for _ in range(size - 1)]
        super().__init__(*args, **kwargs)
        if self.out_channels == 1:
            raise IgniteError(
                'TissueEnsemble requires a channel per class, not out_channels=1: predict with each member.'
            )
        self.others = nn.ModuleList(TissueSegmentor(*a, **k) for a, k in others)

    @property
    def members(self) -> list[TissueSegmentor]:
        """The ensemble itself, which is its first member, and the others."""
        return [self, *self.others]

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Return the logarithm of the mean probabilities (N, C, H, W) of images (N, 3, H, W), float32."""
        return self._averaged(TissueSegmentor.encode_decode, inputs, batch_img_metas)

    def _forward(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> Tensor:
        return self._averaged(TissueSegmentor._forward, inputs, data_samples)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict:
        raise IgniteError(
            'a TissueEnsemble cannot be trained: train its members one by one as TissueSegmentor, e.g. with '
            'tools/cross_validate.py, and list their checkpoints in an ensemble.json.'
        )

    def _averaged(self, predict: Callable[..., Tensor], *arguments: object) -> Tensor:
        if not self.others:
            return predict(self, *arguments)
        total = None
        for member in self.members:
            logits = predict(member, *arguments)
            if total is None:
                total = logits.new_zeros(logits.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
            # On a CPU image by image, to save memory; on an accelerator few large operations.
            for sums, values in zip(total, logits) if total.device.type == 'cpu' else [(total, logits)]:
                sums.add_(values.softmax(-3, dtype=total.dtype))
            del logits
        return total.div_(len(self.members)).clamp_min_(torch.finfo(total.dtype).tiny).log_()
