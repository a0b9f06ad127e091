"""What a device has, file by file; its text becomes windows of tokens."""
