"""Test-time augmentation by the symmetries of the square: tissue has no up and no left."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import IgniteError

_FLIPS = ((), (-1,), (-2,), (-2, -1))
NUMBERS = (1, 2, 4, 8)


def average_symmetries(
    predict: Callable[[Tensor], Tensor], windows: Tensor, number: int = 8, at_once: int = 1
) -> Tensor:
    """Average what is predicted for turned and mirrored windows, turned and mirrored back.

    The probabilities are added as they come, so one sum is in memory, not ``number`` predictions.

    Args:
        predict: Gives (B, C, h, w) logits for (B, 3, h, w) windows; with ``number=8`` it is also given (B, 3, w, h).
        windows: (B, 3, h, w).
        number: 1: the windows as they are; 2: and mirrored left to right; 4: and mirrored top to bottom, and both (a
            half turn); 8: these four, and each of them transposed (which brings in the quarter turns).
        at_once: how many of up to four are predicted at once, as a batch of ``at_once`` * B.

    Returns:
        (B, C, h, w): the mean probabilities (softmax over C), 0..1, float32 (float64 of float64 logits); with
        ``number=1`` the logits just as ``predict`` gives them.

    Raises:
        IgniteError: another number.
    """
    if type(number) is not int or number not in NUMBERS:
        raise IgniteError(f'the number of symmetries is {number!r}; 1, 2, 4 or 8 was expected.')
    if number == 1:
        return predict(windows)
    total = None
    for transpose in (False, True)[: max(number // 4, 1)]:
        turned = windows.transpose(2, 3) if transpose else windows
        flips = _FLIPS[:number]
        for group in (flips[i : i + at_once] for i in range(0, len(flips), at_once)):
            logits = predict(torch.cat([turned.flip(axes) for axes in group]))
            if total is None:
                shape = (len(windows), *logits.shape[1:])
                total = torch.zeros(shape, dtype=_precision(logits), device=logits.device)
            # Window by window: their probabilities, and these turned back, need the memory of one.
            for axes, part in zip(group, logits.split(len(windows))):
                for place, one in zip(total, part):
                    found = one.softmax(0, dtype=total.dtype).flip(axes)
                    place.add_(found.transpose(1, 2) if transpose else found)
            del logits
    return total.div_(number)


def _precision(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
