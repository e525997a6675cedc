"""The commonest runs, compiled: LRU and on-demand decide, enqueue and pass their time in machine code.

Optional (`pip install 'moesim[fast]'`, which brings numba): without it the same runs take the loop in Python and give
the same rows. Every other policy takes the loop anyway: rules stay plain Python, and this package is held against
them, row by row, in tests/test_compiled.py.
"""
