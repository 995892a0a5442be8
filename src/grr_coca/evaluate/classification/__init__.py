"""Zero-shot classification and probes, on images with their classes."""
