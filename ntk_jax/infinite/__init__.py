"""The kernel of a network as its widths go to infinity."""
