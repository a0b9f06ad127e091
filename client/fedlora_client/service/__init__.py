"""The device service: it owns the base, the data and the keys of a device, and works when a courier asks."""
