"""Engines that run a model, in ONNX Runtime or PyTorch, behind one small interface.

Only `engine.torch` imports PyTorch.
"""
