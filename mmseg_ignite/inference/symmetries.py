"""Test-time augmentation by flips and quarter turns: tissue has no preferred orientation."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import IgniteError

_FLIPS = ((), (-1,), (-2,), (-2, -1))
NUMBERS = (1, 2, 4, 8)


def average_symmetries(
    predict: Callable[[Tensor], Tensor], windows: Tensor, number: int = 8, at_once: int = 1
) -> Tensor:
    """Average the predictions for flipped and transposed windows, mapped back to the original orientation.

    Probabilities are added as they are computed, so memory holds one sum rather than ``number`` predictions.

    Args:
        predict: Function from ``windows``, (B, 3, h, w), to logits (B, C, h, w); for 8 also called with (B, 3, w, h).
        number: 1: original windows; 2: also flipped horizontally; 4: also flipped vertically and both; 8: also each of these
            transposed, which includes the quarter turns. Any other raises IgniteError.
        at_once: Number of flipped copies, 1 to 4, predicted as one batch of ``at_once`` * B windows.

    Returns:
        (B, C, h, w) mean softmax probabilities in 0..1, float32 (float64 for float64 logits); for 1 the unchanged logits.

    Example:
        >>> labels = average_symmetries(model, torch.rand(2, 3, 512, 512), number=4).argmax(1)
    """
    if type(number) is not int or number not in NUMBERS:
        raise IgniteError(f'the number of symmetries is {number!r}; 1, 2, 4 or 8 was expected.')
    if number == 1:
        return predict(windows)
    total, flips = None, _FLIPS[:number]
    for transpose in (False, True)[: max(number // 4, 1)]:
        source = windows.transpose(2, 3) if transpose else windows
        for group in (flips[i : i + at_once] for i in range(0, len(flips), at_once)):
            logits = predict(torch.cat([source.flip(axes) for axes in group]))
            if total is None:
                dtype = torch.promote_types(logits.dtype, torch.float32)
                total = torch.zeros(len(windows), *logits.shape[1:], dtype=dtype, device=logits.device)
            for axes, part in zip(group, logits.split(len(windows))):
                # On a CPU one window at a time, to save memory; on an accelerator few large operations.
                for window_sum, window_logits in zip(total, part) if total.device.type == 'cpu' else [(total, part)]:
                    probabilities = window_logits.softmax(-3, dtype=total.dtype).flip(axes)
                    window_sum.add_(probabilities.transpose(-2, -1) if transpose else probabilities)
            del logits
    return total.div_(number)
