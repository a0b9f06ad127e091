"""An encoder, forward and backward."""
