"""Tiny random models, packs, adapters and texts, as the tests make them."""
