from .onnx_segmentor import OnnxSegmentor
from .tissue_ensemble import TissueEnsemble
from .tissue_segmentor import TissueSegmentor
from .window_scores import label_image

__all__ = ['OnnxSegmentor', 'TissueEnsemble', 'TissueSegmentor', 'label_image']
