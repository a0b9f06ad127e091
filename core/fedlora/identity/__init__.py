"""Who signed what: pairs of keys, signed envelopes, JSON in one form. `cryptography` is loaded when a key is used."""
