"""What the tests of quality share: a tiny model, its layers, tokens, predictors and stand-ins made by hand."""

from functools import cache

import numpy as np
import torch

from moesim.quality.foresight import PredictorForesight
from moesim.quality.measure import run
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.residual import Residual
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from moesim.record.predictors.router_input import RouterInput
from tests.record import tiny_models

PROMPT = 5
LENGTH = 24
LANES = 3


@cache
def model_and_layers(name):
    model = getattr(tiny_models, name)()
    return model, find_moe_layers(model)


@cache
def default_vectors(name):
    _, layers = model_and_layers(name)
    shape = (len(layers), tiny_models.EXPERTS, 32)
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def tokens(lanes=LANES, length=LENGTH, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, tiny_models.VOCABULARY, (lanes, length)))


def foresights(name):
    _, layers = model_and_layers(name)
    made = (RouterInput(layers), Residual(layers), ResidualDefaultVectors(layers, default_vectors(name)))
    return [PredictorForesight(layers, each) for each in made]


@torch.inference_mode()
def logits_of(name, mode, given=None, *, stepped=None):
    model, layers = model_and_layers(name)
    given = tokens() if given is None else given
    if mode is not None:
        mode.begin(len(given))
    return run(model, layers, mode, given, PROMPT, stepped=stepped)


class Oracle:
    """Foresees the true router's own logits, [layers, lanes * length, experts], of a whole pass."""

    name = "oracle"

    def __init__(self, logits):
        self._logits = logits

    def logits(self, target, event):
        return self._logits[target]
