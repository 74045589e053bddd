from .tissue_ensemble import TissueEnsemble
from .tissue_segmentor import TissueSegmentor

__all__ = ['TissueEnsemble', 'TissueSegmentor']
