"""Machines that the replay loop can drive; all speak CUDA's language (see base)."""
