"""A decoder, forward and backward."""
