"""Readers of image-text pairs, one file format each; `open.py` chooses."""
