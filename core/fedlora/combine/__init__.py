"""Adapters of one base become one: weighted sums of their products or factors, pruned, with elected signs."""
