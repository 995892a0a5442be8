"""Verbs for files of image-text pairs."""
