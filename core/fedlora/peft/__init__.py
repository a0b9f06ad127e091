"""PEFT's directories, read and written."""
