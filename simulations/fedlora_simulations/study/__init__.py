"""A study: one scenario run with several methods, settings and seeds, and the tables of what came of it."""
