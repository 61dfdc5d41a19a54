"""Beyond one memory: kernels tile by tile, on disk."""
