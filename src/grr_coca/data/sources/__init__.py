"""Readers of image-text pairs, one for each file format. `open.py` chooses the reader."""
