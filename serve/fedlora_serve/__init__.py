"""Serving: one base on ONNX Runtime, adapters swapped per request."""
