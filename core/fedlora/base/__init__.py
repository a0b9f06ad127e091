"""The frozen base: a checkpoint becomes a pack, quantized once."""
