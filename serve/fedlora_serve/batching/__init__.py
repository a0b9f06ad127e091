"""Many requests of different adapters in one batch of one session."""
