"""Networks and architectures that tests and benchmarks share, and slow, obvious forms of what they
compute.
"""
