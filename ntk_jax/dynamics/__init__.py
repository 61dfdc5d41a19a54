"""Training under a fixed kernel."""
