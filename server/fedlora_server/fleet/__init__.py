"""The server of a fleet: its certificates, its devices, Flower's processes, and the run that they work on."""
