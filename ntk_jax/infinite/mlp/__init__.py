"""The fully connected network: its kernels from the recursion over layers."""
