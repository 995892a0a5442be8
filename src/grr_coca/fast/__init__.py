"""The model as a CPU computes it fastest: weights laid out once, fused layers, the step of a single row."""
