"""The one graph that belongs to a base and a profile: its nodes, inputs and weights, and whether a file holds just that."""
