"""The settings of inference in a segmentor's ``test_cfg``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import IgniteError
from ...inference.symmetries import NUMBERS
from ...inference.tiling import WEIGHTS, grid

_CHOICES = dict(mode=('whole', 'slide'), weights=WEIGHTS, accumulator=(None, 'cpu'), symmetries=NUMBERS)
_CHOICES |= dict.fromkeys(('skip_glass', 'keep_logits'), (True, False))


@dataclass(frozen=True)
class InferenceSettings:
    """Validated ``test_cfg``; see :class:`TissueSegmentor`."""

    mode: str = 'whole'
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    window_batch: int | None = None
    weights: str = 'uniform'
    accumulator: str | None = None
    skip_glass: bool = False
    symmetries: int = 1
    keep_logits: bool = False

    @classmethod
    def of(cls, test_cfg: dict | None, out_channels: int) -> InferenceSettings:
        """Read a ``test_cfg``, ignoring unknown keys; raise IgniteError if values are invalid or contradict each other."""
        settings = cls(**{k: v for k, v in (test_cfg or {}).items() if k in cls.__dataclass_fields__})
        settings._check(out_channels)
        return settings

    def tiling(self, device: torch.device) -> dict:
        """Arguments of :func:`mmseg_ignite.inference.slide_labels` for a network on this device."""
        batch = self.windows_at_once(device) // self.flips_at_once(device)
        # cuDNN's benchmark mode tries its algorithms anew for each size of batch.
        rounded = device.type == 'cuda' and torch.backends.cudnn.benchmark
        options = dict(crop_size=self.crop_size, stride=self.stride, window_batch=batch, weights=self.weights)
        return options | dict(round_batches=rounded)

    def windows_at_once(self, device: torch.device) -> int:
        """Number of windows per batch, flipped copies included, for a network on this device."""
        return self.window_batch or (4 if device.type == 'cpu' else 16)

    def flips_at_once(self, device: torch.device) -> int:
        """Number of flipped copies of a window per batch; more copies of fewer windows need less memory for their sum."""
        return min(4, self.symmetries, self.windows_at_once(device)) if self.mode == 'slide' else 1

    def _check(self, out_channels: int) -> None:
        batch = self.window_batch
        rules = {'window_batch': (batch is None or (type(batch) is int and batch > 0), 'None or an integer above 0')}
        for name, allowed in _CHOICES.items():
            holds = any(
                type(getattr(self, name)) is type(choice) and getattr(self, name) == choice for choice in allowed
            )
            rules[name] = (holds, f'one of {", ".join(map(repr, allowed))}')
        for name in ('crop_size', 'stride') if self.mode == 'slide' else ():
            is_pair = isinstance(getattr(self, name), (tuple, list)) and len(getattr(self, name)) == 2
            rules[name] = (is_pair, 'a pair of integers (height, width) in px')
        for name, (holds, expected) in rules.items():
            if not holds:
                raise IgniteError(f'test_cfg.{name} is {getattr(self, name)!r}; {expected} was expected: correct it.')
        if self.mode == 'slide':
            try:
                for crop, stride in zip(self.crop_size, self.stride):
                    grid(crop, crop, stride)
            except IgniteError as error:
                raise IgniteError(f'test_cfg.crop_size or test_cfg.stride is invalid: {error}') from error
        if self.skip_glass and (self.mode == 'whole' or self.keep_logits):
            raise IgniteError('test_cfg.skip_glass requires mode="slide" and keep_logits=False: change one of them.')
        if out_channels == 1 and (self.skip_glass or self.symmetries > 1):
            raise IgniteError(
                'test_cfg.skip_glass and symmetries require a channel per class, not out_channels=1: omit them.'
            )
