"""Bytes on disk: whole files or none, documents in JSON and TOML, tensors at known offsets."""
