"""Beyond one memory and one device: kernels in tiles, on disk, on meshes, as operators."""
