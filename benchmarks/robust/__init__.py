"""What `bench_robust.py` is made of."""
