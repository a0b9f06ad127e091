"""Arithmetic below the methods: sums, means of factors and of products."""
