"""Brings an index up to date with the pictures that it is of."""
