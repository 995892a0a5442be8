"""Captions of a split, and caption metrics as COCO's evaluation computes them (arXiv 1504.00325), without Java."""
