"""Fast versions of layers for inference on a CPU, and a copy of a model that is built from them."""
