"""Steps, plans and states of a training."""
