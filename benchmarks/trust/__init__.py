"""What `bench_trust.py` is made of."""
