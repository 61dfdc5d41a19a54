"""A training kernel of any kind in its eigenbasis, and targets and outputs in the same basis."""
