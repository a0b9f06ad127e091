"""`fedlora evaluate`: a base with or without an adapter on a file of data, in torch or in the exported graph."""
