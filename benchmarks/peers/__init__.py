"""The same kernels by google/neural-tangents and PyTorch, each in its own environment, and by this library.

Environments are built on request in `.peers` (a few minutes, some gigabytes): neural-tangents 0.6.5 needs JAX 0.4.38
and TensorFlow. Every case runs in one process per peer, on the same numbers from one file; the calls of all processes
are interleaved, and all results are compared with each other before any time is believed.
"""

from benchmarks.peers.compare import run as run
