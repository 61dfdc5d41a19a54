"""Equal layers of a traced program as one loop, which is traced and compiled once for all of them.

A program is here a list of steps: equations with their operands, which are results of earlier
steps, arguments or constants. Where the same steps follow each other several times, each time on
what the turn before them left or on what was known before, they are the turns of a loop.
"""
