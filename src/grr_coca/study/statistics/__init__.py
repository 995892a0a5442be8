"""What a study's numbers allow to be said. Pure functions; each names the source of its formula.

Shapes: S seeds; dimensions before it are studies, endpoints or whatever else is looked at side by side.
"""
