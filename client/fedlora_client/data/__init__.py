"""A device's text becomes windows of tokens."""
