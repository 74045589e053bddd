"""report.html: scores and regions of a test in one file that needs no network."""

from .gallery import GalleryItem
from .page import write_report
from .translations import LANGUAGES

__all__ = ['LANGUAGES', 'GalleryItem', 'write_report']
