"""Curves of a trace: misses at every cache size in one pass, and how far apart the uses of an expert lie."""

from moesim.curve.curves import Curves, curves_of

__all__ = ["Curves", "curves_of"]
