"""`fedlora simulate`, `resume`, `study` and `demo`."""
