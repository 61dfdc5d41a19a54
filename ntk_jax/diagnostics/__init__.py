"""Does the kernel picture hold for this network? How far it moved, how far it could move, and from
which limit.
"""
