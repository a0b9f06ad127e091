"""The server: it runs rounds and aggregates adapters."""
