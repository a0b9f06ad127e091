"""What is opened once: the configuration, the engine, the store, the metrics."""
