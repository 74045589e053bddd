from .loading import LoadIGNITERegion

__all__ = ['LoadIGNITERegion']
