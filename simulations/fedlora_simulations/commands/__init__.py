"""`fedlora simulate` and `fedlora demo`."""
