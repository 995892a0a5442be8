"""External image encoders: timm, transformers, and ONNX graphs."""
