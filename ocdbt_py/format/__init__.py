"""The format core: bytes to values and back, one module a structure, readers and writers side by side.

No I/O, no clock, no randomness. Comments name the section of the format document that a fact comes from.
"""
