"""What `bench_export.py` is made of; the peers' interpreters run its workers."""
