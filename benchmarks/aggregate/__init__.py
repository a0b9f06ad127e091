"""What `bench_aggregate.py` is made of."""
