"""The arithmetic of a step: plain torch, and kernels in C that are checked against it; which of them to use."""
