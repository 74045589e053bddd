"""Write pages: ``report.html``, scores and regions of a test in one file, and ``slides.html``, predicted slides."""

from .deep_zoom import write_deep_zoom
from .gallery import GalleryItem
from .page import write_report
from .slides_page import SlideEntry, write_slides_page
from .translations import LANGUAGES

__all__ = ['LANGUAGES', 'GalleryItem', 'SlideEntry', 'write_deep_zoom', 'write_report', 'write_slides_page']
