"""The kernel of a network with given parameters."""
