"""A page in the browser on which an image, or a region of a slide, is labelled."""

from .options import AppOptions
from .server import running, serve

__all__ = ['AppOptions', 'running', 'serve']
