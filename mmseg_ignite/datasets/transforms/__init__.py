"""The transforms, registered in mmseg."""

from .lab import LABJitter, RandStainNA
from .loading import LoadIGNITERegion
from .orientation import RandomDihedral
from .scanner import RandomScannerEffects
from .shift import StainShift
from .stain import HEDJitter, MacenkoAugment, MacenkoNormalize

__all__ = ['HEDJitter', 'LABJitter', 'LoadIGNITERegion', 'MacenkoAugment', 'MacenkoNormalize']
__all__ += ['RandStainNA', 'RandomDihedral', 'RandomScannerEffects', 'StainShift']
