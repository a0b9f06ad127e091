"""What `bench_deploy.py` is made of: a fleet of real processes, what passes between them, and what they took."""
