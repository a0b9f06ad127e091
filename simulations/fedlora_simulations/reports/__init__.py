"""Reports: what runs left on disk as one page, its pictures and its tables."""
