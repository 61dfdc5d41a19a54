"""From features or vector products to a block of the kernel."""
