"""The contract of exporter and server: profiles, adapter inputs, manifests, adapter files."""
