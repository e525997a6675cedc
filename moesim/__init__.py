"""moesim: a discrete-event simulator of Mixture-of-Experts inference with offloaded experts."""

__version__ = "0.1.0"
