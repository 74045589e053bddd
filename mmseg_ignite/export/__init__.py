"""Trained models for other programs: one module for each format, all from one description and one pure network."""

from .description import ModelDescription
from .network import ExportNetwork

__all__ = ['ExportNetwork', 'ModelDescription']
