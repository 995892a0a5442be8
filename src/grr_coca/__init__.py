"""GRR-CoCa: a compact model that captions and searches images."""

__version__ = "0.1.0"
