"""Which weights a result is of: one hash over every tensor of a model."""

import hashlib

import torch
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """sha256 over the names and bytes of all tensors of the state, in the order of their names.

    Saving a checkpoint and loading it again in the same type leaves it as it was.
    """
    state = model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
