"""Whole slides: reading them at a resolution, finding their tissue, and writing rasters of their size."""

from .reader import Slide, dicom_slides, is_slide, open_slide
from .tissue import TissueMask, tissue_mask
from .view import SlideView

__all__ = ['Slide', 'SlideView', 'TissueMask', 'dicom_slides', 'is_slide', 'open_slide', 'tissue_mask']
