"""Damaged files for every reader of files of strangers."""
