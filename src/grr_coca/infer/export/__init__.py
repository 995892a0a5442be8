"""Export checkpoints as ONNX graphs, which run without PyTorch. `docs/deploy.md` shows how to use the graphs."""
