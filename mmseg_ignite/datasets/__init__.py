"""The data sets, the crop stream and the transforms, registered in mmseg."""

from .crop_stream import CropStreamSampler
from .ignite import IGNITECropDataset, IGNITEDataset
from .samples import PackTissueInputs, TissueSample, collate_crops
from .transforms import *  # noqa: F403

__all__ = [
    'CropStreamSampler',
    'IGNITECropDataset',
    'IGNITEDataset',
    'PackTissueInputs',
    'TissueSample',
    'collate_crops',
]
