"""Whole slides: reading them at a resolution, finding their tissue, and writing rasters of their size."""
