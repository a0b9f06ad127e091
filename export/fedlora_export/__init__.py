"""The exporter: a base pack becomes an ONNX graph with adapter inputs."""
