"""One process per peer: each module imports only what its own environment has."""
