"""The service: OpenAI's interface, the administration of adapters, metrics and a page."""
