from .tissue_metric import TissueMetric

__all__ = ['TissueMetric']
