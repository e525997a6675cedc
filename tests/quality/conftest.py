"""Models of a few thousand weights: one thread computes them faster than several that wait for each other."""

import torch

torch.set_num_threads(1)
