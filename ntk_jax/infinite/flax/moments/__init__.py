"""Second moments and tangent kernels of values, answered on demand."""
