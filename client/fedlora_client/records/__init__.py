"""A file of any kind becomes records, and a record an example."""
