"""A device takes the newest release of its adapter: fetch, verify, try, swap, watch, go back."""
