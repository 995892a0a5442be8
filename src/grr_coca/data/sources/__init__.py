"""Readers of image-text pairs, one per file format. `open.py` chooses the reader."""
