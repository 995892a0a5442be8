"""Image encoders of others: those of timm, of transformers, and ONNX graphs."""
