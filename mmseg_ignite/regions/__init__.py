"""What a label map says of a tissue: its connected regions, their outlines for QuPath, areas and ratios."""
