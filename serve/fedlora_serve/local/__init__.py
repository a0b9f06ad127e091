"""One sequence at a time, without a service."""
