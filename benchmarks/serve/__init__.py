"""What `bench_serve.py` is made of; the peers' interpreters run its workers."""
