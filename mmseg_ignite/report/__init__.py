"""Write ``report.html``: scores and regions of a test in one self-contained file."""

from .gallery import GalleryItem
from .page import write_report
from .translations import LANGUAGES

__all__ = ['LANGUAGES', 'GalleryItem', 'write_report']
