"""The way of a batch from the data loader to the network."""

from collections.abc import Sequence

import torch
from mmengine.structures import BaseDataElement, PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import stack_batch
from torch import Tensor

from ..errors import IgniteError
from .colour_changes import change_batch

_MAPS = ('gt_sem_seg', 'gt_edge_map', 'gt_depth_map')  # in mmseg's order


@MODELS.register_module()
class TissueDataPreProcessor(SegDataPreProcessor):
    """mmseg's SegDataPreProcessor for whole batches: arguments and results are the same.

    Images and labels are copied to the device as the bytes that they are, from page-locked memory and without waiting, and
    converted there: one operation for the whole batch in place of several for each image. The loader's ``pin_memory=True``
    saves a copy. Images of one size are returned in channels-last memory. Labels are int64 on the device, as mmseg's losses
    need them.

    Colour changes that the data set has deferred (``defer_colours=True`` of
    :class:`IGNITECropDataset <mmseg_ignite.datasets.IGNITECropDataset>`) are applied first.

    Raises:
        IgniteError: images of a test differ in size, a training batch has no samples, or ``size`` and ``size_divisor`` are
            both set or both missing.

    Example:
        In a config: ``model = dict(data_preprocessor=dict(type='TissueDataPreProcessor', size=(512, 512), ...))``
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: ``inputs``, (N, C, H, W) or a list of (C, H, W), uint8 or float; ``data_samples``, a list or None. It is not
                changed.
            training: pad as in a training (``size``, ``size_divisor``), else as ``test_cfg`` says.

        Returns:
            ``inputs``, (N, C, H, W) float32, normalised; ``data_samples``, copies on the device, or None.
        """
        samples = data.get('data_samples')
        if training and samples is None:
            raise IgniteError('a training batch has no data_samples, which have the labels: add them to the pipeline.')
        changes = [getattr(sample, 'colour_changes', ()) for sample in samples or ()]
        images = self._network_inputs(data['inputs'], changes)
        samples = None if samples is None else self._samples(samples)
        if training:
            images, samples = self._padded(images, samples)
            if self.batch_augments is not None:
                images, samples = self.batch_augments(images, samples)
        elif not isinstance(images, Tensor):
            sizes = sorted({tuple(image.shape[1:]) for image in images})
            raise IgniteError(f'a batch of a test has images of {sizes} px; one size was expected: set batch_size=1.')
        elif self.test_cfg:
            images = self._test_padded(images, samples)
        return dict(inputs=images, data_samples=samples)

    def _moved(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device, through page-locked memory to a GPU."""
        if self.device.type == 'cuda' and tensor.device.type == 'cpu' and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _batched(self, tensors: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Return tensors on the device, in one if they have the same shape and type."""
        if isinstance(tensors, Tensor):
            return self._moved(tensors)
        moved = [self._moved(tensor) for tensor in tensors]
        return torch.stack(moved) if len({(tensor.shape, tensor.dtype) for tensor in moved}) == 1 else moved

    def _network_inputs(self, images: Tensor | Sequence[Tensor], changes: list) -> Tensor | list[Tensor]:
        images = self._batched(images)
        if isinstance(images, Tensor):
            return self._normalised(images, changes)
        changes = [[own] for own in changes] or [[]] * len(images)
        return [self._normalised(image[None], own)[0] for image, own in zip(images, changes)]

    def _normalised(self, images: Tensor, changes: list) -> Tensor:
        if any(changes):
            images = change_batch(images, changes)
        images = images.contiguous()  # a CPU is slow at operations on three channels in channels-last memory
        if self._channel_conversion and images.shape[1] == 3:
            images = images.flip(1)
        images = images.float()
        if self._enable_normalize:
            images = (images - self.mean).div_(self.std)
        return images.contiguous(memory_format=torch.channels_last)

    def _samples(self, samples: Sequence[SegDataSample]) -> list[SegDataSample]:
        """Return copies of samples on the device, without changes, and with labels of int64."""
        copies = [_copy(sample) for sample in samples]
        labelled = [sample for sample in copies if 'gt_sem_seg' in sample]
        labels = self._batched([sample.gt_sem_seg.data for sample in labelled]) if labelled else []
        if isinstance(labels, Tensor):
            labels = labels.long()
        for sample, label in zip(labelled, labels):
            sample.gt_sem_seg = PixelData(metainfo=sample.gt_sem_seg.metainfo, data=label.long())
        for sample in copies:
            for key, value in list(sample.items()):
                if key != 'gt_sem_seg' and isinstance(value, (Tensor, BaseDataElement)):
                    sample.set_data({key: value.to(self.device, non_blocking=True)})
        return copies

    def _padded(self, images: Tensor | list[Tensor], samples: list) -> tuple[Tensor, list]:
        """Pad images and labels for training and note the padding in the samples, as mmseg does."""
        if (self.size is None) == (self.size_divisor is None):
            raise IgniteError(
                f'size of the data preprocessor is {self.size} and size_divisor {self.size_divisor}; one of them was '
                'expected: set the other one to None.'
            )
        if not isinstance(images, Tensor) or self._padding(images, self.size, self.size_divisor):
            options = dict(size=self.size, size_divisor=self.size_divisor)
            return stack_batch(list(images), samples, **options, pad_val=self.pad_val, seg_pad_val=self.seg_pad_val)
        for sample in samples:
            maps = [sample.get(name) for name in _MAPS if name in sample]
            shape = maps[-1].shape if maps else None
            sample.set_metainfo(dict(img_shape=images.shape[-2:], pad_shape=shape, padding_size=(0, 0, 0, 0)))
        return images, samples

    def _padding(self, images: Tensor, size: tuple[int, int] | None, divisor: int | None) -> bool:
        """Return whether a batch has to be padded."""
        height, width = images.shape[-2:]
        return height < size[-2] or width < size[-1] if size else height % divisor != 0 or width % divisor != 0

    def _test_padded(self, images: Tensor, samples: list | None) -> Tensor:
        options = dict(size=self.test_cfg.get('size'), size_divisor=self.test_cfg.get('size_divisor'))
        images, notes = stack_batch(list(images), **options, pad_val=self.pad_val, seg_pad_val=self.seg_pad_val)
        for sample, note in zip(samples or (), notes):
            sample.set_metainfo(note)
        return images


def _copy(sample: SegDataSample) -> SegDataSample:
    """Return a copy of a sample that shares its data, without colour changes."""
    return type(sample)(metainfo=sample.metainfo, **{k: value for k, value in sample.items() if k != 'colour_changes'})
