"""Bytes and time: connections, sizes, hosts."""
