"""What `bench_train.py` is made of."""
