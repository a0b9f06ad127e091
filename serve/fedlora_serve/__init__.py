"""Serving: one base on ONNX Runtime, adapters swapped per request."""

from fedlora.quiet_runtime import silence_telemetry

silence_telemetry()
