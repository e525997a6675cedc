"""Which weights a result is of: one hash over every tensor of a model."""

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import nn

_AS_STORED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def weights_sha256(model: nn.Module) -> str:
    """sha256 over the names and bytes of all tensors of the state, in the order of their names.

    Saving a checkpoint and loading it again in the same type leaves it as it was. A checkpoint that
    was loaded in another type keeps its own hash: whose weights they are does not depend on how they are computed.
    """
    known = _AS_STORED.get(model)
    if known is not None:
        return known
    state = model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_hash(model: nn.Module, sha256: str) -> None:
    """Let a model that was loaded in another type than its checkpoint's be known by the checkpoint's hash."""
    _AS_STORED[model] = sha256
