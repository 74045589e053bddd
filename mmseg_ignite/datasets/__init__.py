"""The data set and its transforms, registered in mmseg."""

from .ignite import IGNITEDataset
from .transforms import LoadIGNITERegion

__all__ = ['IGNITEDataset', 'LoadIGNITERegion']
