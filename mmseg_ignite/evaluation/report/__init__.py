"""report.html: scores and regions of a test in one file that needs no network."""

from .gallery import GalleryItem
from .report import write_report

__all__ = ['GalleryItem', 'write_report']
