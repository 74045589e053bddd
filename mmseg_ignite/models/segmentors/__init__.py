from .tissue_ensemble import TissueEnsemble
from .tissue_segmentor import TissueSegmentor
from .window_scores import label_image

__all__ = ['TissueEnsemble', 'TissueSegmentor', 'label_image']
