"""Caption metrics as the COCO caption evaluation computes them (arXiv 1504.00325), without Java."""
