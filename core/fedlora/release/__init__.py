"""A release: an adapter that somebody vouches for. Its manifest, its signature, its files, what makes it acceptable."""
