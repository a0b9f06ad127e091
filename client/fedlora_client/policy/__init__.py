"""A device's own policy: what it takes part in, when, and how much a day."""
