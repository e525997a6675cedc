"""Every mode on one small model of every family that can be recorded: it runs, and costs nothing where it must not."""

import numpy as np
import pytest
import torch

from moesim.quality.foresight import PredictorForesight
from moesim.quality.measure import AGREEMENT, DIVERGENCE, NLL, TOKENS, TRUE_NLL, Layout, measure
from moesim.quality.plan import Plan
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from tests.record.families import CONFIGS, VOCABULARY, build


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "switch"])
def test_every_mode(name):
    model = build(name)
    layers = find_moe_layers(model)
    vectors = 0.1 * torch.randn(len(layers), 12, 32, generator=torch.Generator().manual_seed(0))
    foresight = PredictorForesight(layers, ResidualDefaultVectors(layers, vectors))
    modes, left_out = Plan([], [foresight], [2], [0.5, 1.0], vectors).modes(layers)
    blocks = np.random.default_rng(2).integers(0, VOCABULARY, (2, 16))
    sums = measure(model, layers, modes, blocks, Layout(4, 2, 2))
    unknown = "gate weights do not follow from its scores"
    assert all(unknown in each for each in left_out)
    assert len(left_out) == (4 if name == "phi-moe" else 0)
    assert len(modes) == (1 + 1 + 2 + 1 + 2 + 4 + 4 + 6 + 2 + 2 + 5) - (2 + 6 + 4 if name == "phi-moe" else 0)
    for mode, found in zip(modes, sums, strict=True):
        assert np.isfinite(found).all()
        assert (found[:, TOKENS] == [9, 9]).all()
        nothing = mode.name == "true" or mode.cache_fraction == 1.0
        if nothing:
            assert (found[:, DIVERGENCE] == 0).all(), mode.name
            assert (found[:, NLL] == found[:, TRUE_NLL]).all(), mode.name
            assert (found[:, AGREEMENT] == found[:, TOKENS]).all()
        elif not (name == "phi-moe" and mode.parameters.get("high") == 0.6):
            # Phi's two weights are almost equal: the second is never light enough for HOBBIT's thresholds.
            assert found[:, DIVERGENCE].sum() > 0, (mode.name, mode.parameters)
