"""Layers as a CPU computes them fastest, and the copy of a model that is made of them. For inference alone."""
