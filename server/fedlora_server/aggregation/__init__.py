"""What stands around a method: the round, its error, robust rules, optimizers."""
