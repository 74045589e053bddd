"""The data sets, the crop stream and the transforms, registered in mmseg."""

from .ignite import IGNITECropDataset, IGNITEDataset
from .samplers import CropStreamSampler
from .transforms import *  # noqa: F403

__all__ = ['CropStreamSampler', 'IGNITECropDataset', 'IGNITEDataset']
