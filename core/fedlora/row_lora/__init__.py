"""An operator of ONNX Runtime in C: rows of one batch, each with an adapter by number, read where it lies."""
