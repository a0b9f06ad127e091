"""Releases as static files of a repository of The Update Framework, which any web server gives out."""
