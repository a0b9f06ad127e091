"""The step's kernels in C: compiled at first use, checked against plain torch, absent where there is no compiler."""
