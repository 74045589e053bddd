"""Samples with uint8 labels, and their way from a loader's worker to the device.

Labels of one byte and a batch in two tensors, one of images and one of labels, cost a worker and the main process the least:
each tensor that a worker sends takes a file descriptor, and labels of mmseg's int64 take more than twice the memory of the
image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils.data import default_collate

from ..errors import IgniteError
from .transforms.base import ColourChange


class TissueSample(SegDataSample):
    """mmseg's sample, whose labels ``gt_sem_seg`` may be uint8 until they are on the device.

    ``to`` makes them int64, as mmseg's losses need them, so that any data preprocessor works. ``colour_changes``, if set,
    are those that :class:`TissueDataPreProcessor <mmseg_ignite.models.TissueDataPreProcessor>` still has to apply to the
    image.
    """

    @property
    def colour_changes(self) -> Sequence[ColourChange | None]:
        """Changes of the image that are still to be applied, in order; see :class:`.transforms.base.ColourChange`."""
        return self.get('_colour_changes', ())

    @colour_changes.setter
    def colour_changes(self, value: Sequence[ColourChange | None]) -> None:
        self.set_field(list(value), '_colour_changes')

    def to(self, *args, **kwargs) -> 'TissueSample':
        """Copy to a device, with labels of int64.

        Raises:
            IgniteError: the image has changes left, which nobody would apply.
        """
        if self.colour_changes:
            raise IgniteError(
                'the data set leaves colour changes to the data preprocessor (defer_colours=True), but the data preprocessor '
                'of the model is another one: set model.data_preprocessor.type=TissueDataPreProcessor.'
            )
        moved = super().to(*args, **kwargs)
        if 'gt_sem_seg' in moved and not moved.gt_sem_seg.data.is_floating_point():
            moved.gt_sem_seg.data = moved.gt_sem_seg.data.long()
        return moved

    def pin_memory(self) -> 'TissueSample':
        """Copy the labels to page-locked memory; torch's loader calls this for ``pin_memory=True``."""
        if 'gt_sem_seg' in self:
            self.gt_sem_seg.data = self.gt_sem_seg.data.pin_memory()
        return self


@TRANSFORMS.register_module()
class PackTissueInputs(PackSegInputs):
    """Pack like mmseg's PackSegInputs, but keep uint8 labels and do not copy the image.

    ``inputs`` is a view (3, H, W) of the image; ``data_samples`` is a :class:`TissueSample`, whose ``gt_sem_seg`` is (1, H,
    W) uint8 if ``gt_seg_map`` is, and which keeps ``colour_changes``. Everything else is packed as mmseg does.

    Args:
        meta_keys: keys to keep as ``metainfo``.

    Example: ``dict(type='PackTissueInputs', meta_keys=meta_keys)``
    """

    def transform(self, results: dict) -> dict:
        """Pack image, labels and metadata."""
        image, labels = results.get('img'), results.get('gt_seg_map')
        own_image = image is not None and image.ndim == 3
        own_labels = labels is not None and labels.ndim == 2 and labels.dtype == np.uint8
        done = {name for name, own in (('img', own_image), ('gt_seg_map', own_labels)) if own}
        packed = super().transform({key: value for key, value in results.items() if key not in done})
        rest = packed['data_samples']
        sample = TissueSample(metainfo=rest.metainfo, **dict(rest.items()))
        if own_image:
            packed['inputs'] = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        if own_labels:
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(np.ascontiguousarray(labels))[None])
        if 'colour_changes' in results:
            sample.colour_changes = results['colour_changes']
        return dict(packed, data_samples=sample)


@FUNCTIONS.register_module()
def collate_crops(samples: Sequence[dict], _scope_: str | None = None) -> dict:
    """Collate packed samples like mmengine's pseudo_collate, with their images in one tensor, and their labels in another.

    Images or labels of different sizes stay a list, as with pseudo_collate. Each sample's ``gt_sem_seg`` is a view of the
    tensor of labels.

    Args:
        samples: packed samples.
        _scope_: not used; mmengine passes on what it notes in a base config of another package.

    Returns:
        ``inputs``, (N, 3, H, W) in channels-last memory, or a list of (3, H, W), and ``data_samples``, a list.

    Example: ``train_dataloader = dict(collate_fn=dict(type='collate_crops'))``
    """
    batch = pseudo_collate(samples)
    images, packed = batch['inputs'], batch.get('data_samples', ())
    if _alike(images):
        batch['inputs'] = default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    labels = [sample.gt_sem_seg.data for sample in packed if 'gt_sem_seg' in sample]
    if len(labels) == len(packed) and _alike(labels):
        for sample, view in zip(packed, default_collate(labels)):
            sample.gt_sem_seg.data = view
    return batch


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Return whether there are tensors, (C, H, W), and all have the same shape and type."""
    return len({(tensor.shape, tensor.dtype) for tensor in tensors}) == 1 and tensors[0].ndim == 3
