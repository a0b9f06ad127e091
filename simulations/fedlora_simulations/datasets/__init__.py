"""Text that a simulation deals out to its devices: one module per data set."""
