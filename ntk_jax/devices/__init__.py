"""Several devices and several processes: where arrays are, and what all must agree on."""
