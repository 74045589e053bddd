from .loading import LoadIGNITERegion
from .orientation import RandomDihedral
from .scanner import RandomScannerEffects
from .stain import HEDJitter, MacenkoAugment, MacenkoNormalize

__all__ = [
    'HEDJitter',
    'LoadIGNITERegion',
    'MacenkoAugment',
    'MacenkoNormalize',
    'RandomDihedral',
    'RandomScannerEffects',
]
