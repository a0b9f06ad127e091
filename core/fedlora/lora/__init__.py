"""What trains: the configuration, an adapter, and the algebra of its products B A."""
