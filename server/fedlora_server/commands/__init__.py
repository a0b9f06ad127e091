"""`fedlora server`."""
