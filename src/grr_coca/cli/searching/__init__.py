"""Verbs of an index of pictures: index, search, duplicates."""
