"""Brings an index up to date with the files of its pictures."""
