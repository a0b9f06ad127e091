"""What the benchmarks share: the record of a run, checkpoints, processes that are measured, and the limits of a machine."""
