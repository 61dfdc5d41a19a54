"""Beyond one memory and one device: kernels in tiles, on meshes of devices, as operators."""
