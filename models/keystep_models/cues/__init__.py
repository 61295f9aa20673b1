"""Frozen extractors: preprocessing and ONNX."""
