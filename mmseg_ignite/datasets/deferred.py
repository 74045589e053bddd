"""Colour changes that workers only draw, and that the data preprocessor applies to the batch on its device."""

import numpy as np
from mmcv.transforms import BaseTransform

from ..errors import IgniteError
from .samples import PackTissueInputs
from .transforms.base import DrawnTransform, apply_changes, check_image


class DeferredTransform(BaseTransform):
    """Draw the changes of a colour transform and add them to ``colour_changes`` of the results; ``img`` stays as it is."""

    def __init__(self, drawn: DrawnTransform) -> None:
        self.drawn = drawn

    def transform(self, results: dict) -> dict:
        """Draw the same random numbers as the transform itself."""
        check_image(results['img'], type(self.drawn).__name__)
        results['colour_changes'] = [*results.get('colour_changes', ()), *self.drawn.draw(results)]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.drawn!r})'


def deferred_transforms(transforms: list) -> list:
    """Return the transforms of a pipeline with all that are :class:`DrawnTransform` deferred.

    Raises:
        IgniteError: the pipeline has none, another transform follows the first one, whose input would no longer be the
            same, or the pipeline does not end with PackTissueInputs, which keeps the changes.
    """
    first = next((number for number, transform in enumerate(transforms) if isinstance(transform, DrawnTransform)), None)
    if first is None:
        raise IgniteError(
            'defer_colours=True of the data set has nothing to defer: add HEDJitter, RandStainNA or RandomScannerEffects to '
            'the pipeline, or set it to False.'
        )
    *between, last = transforms[first:]
    wrong = [type(transform).__name__ for transform in between if not isinstance(transform, DrawnTransform)]
    if wrong:
        raise IgniteError(
            f'{wrong[0]} follows {type(transforms[first]).__name__} in the pipeline, but with defer_colours=True the colours '
            f'change after it: move {wrong[0]} before {type(transforms[first]).__name__}, or set defer_colours=False.'
        )
    if not isinstance(last, PackTissueInputs):
        raise IgniteError(
            f'the pipeline ends with {type(last).__name__}, but defer_colours=True needs PackTissueInputs: replace it.'
        )
    return [*transforms[:first], *map(DeferredTransform, between), last]


def changed_image(sample: dict) -> np.ndarray:
    """Return the image of a packed sample, (3, H, W) uint8 BGR, as (H, W, 3) after the changes that are left to the device.

    Example:
        >>> changed_image(dataset[(0, 7)]).shape
        (512, 512, 3)
    """
    image = np.ascontiguousarray(sample['inputs'].numpy().transpose(1, 2, 0))
    return apply_changes(image, getattr(sample['data_samples'], 'colour_changes', ()))
