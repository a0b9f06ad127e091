"""Training on a device: LoRA on the packed base, and the Flower ClientApp that brings the work."""
