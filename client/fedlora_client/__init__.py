"""Training on a device: LoRA on the packed base, and the Flower ClientApp that brings the work."""

from fedlora.threads import wait_without_spinning

wait_without_spinning()
