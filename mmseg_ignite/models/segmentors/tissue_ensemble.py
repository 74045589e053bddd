"""Several trained networks of one architecture that predict as one."""

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

    So sliding windows, symmetries and all else of ``test_cfg`` are as of one network. The members predict one after the
    other: beside the memory of one there is the sum of their probabilities, float32, of one batch of windows. An ensemble
    of one gives the logits of its member.

    Args:
        size (int): number of members, each made of the other arguments, which are those of TissueSegmentor.

    Raises:
        IgniteError: a size below 1, a decode head of one output channel, or a training.
    """

    def __init__(self, *args: object, size: int, **kwargs: object) -> None:
        if type(size) is not int or size < 1:
            raise IgniteError(f'the size of TissueEnsemble is {size!r}; an integer above 0 was expected: correct it.')
        others = [copy.deepcopy((args, kwargs)) for _ in range(size - 1)]
        super().__init__(*args, **kwargs)
        if self.out_channels == 1:
            raise IgniteError(
                'TissueEnsemble averages probabilities of one output channel a class, and the decode head has '
                'out_channels=1: predict with the members one by one.'
            )
        self.others = nn.ModuleList(TissueSegmentor(*a, **k) for a, k in others)

    @property
    def members(self) -> list[TissueSegmentor]:
        """The ensemble itself, which is its first member, and the others."""
        return [self, *self.others]

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logarithm of the mean probabilities (N, C, H, W) of images (N, 3, H, W), float32."""
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
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
            for place, one in zip(total, logits):  # one by one: the probabilities need the memory of one
                place.add_(one.softmax(0, dtype=total.dtype))
            del logits
        return total.div_(len(self.members)).clamp_min_(torch.finfo(total.dtype).tiny).log_()
