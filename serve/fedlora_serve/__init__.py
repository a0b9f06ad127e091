"""Serving: one base on ONNX Runtime, adapters swapped per request."""

from fedlora.telemetry import silence_telemetry

silence_telemetry()
