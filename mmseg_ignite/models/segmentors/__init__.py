from .tissue_segmentor import TissueSegmentor

__all__ = ['TissueSegmentor']
