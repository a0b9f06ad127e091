"""What a fleet's server and its devices agree on: addresses, keys, the bundle that makes a device of the fleet."""
