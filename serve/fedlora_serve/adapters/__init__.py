"""The adapters that a process holds, each known by the digest of its values."""
