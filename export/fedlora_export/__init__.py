"""The exporter: a base pack becomes an ONNX graph with adapter inputs."""

from fedlora.telemetry import silence_telemetry

silence_telemetry()
