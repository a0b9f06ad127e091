"""Embeddings of texts, by a base that is an encoder."""
