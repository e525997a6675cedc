"""The router's own rule on given logits, on one small model of every family that can be recorded."""

import pytest
import torch

from moesim.errors import InputError
from moesim.quality.router_rule import choose, gate_weights
from moesim.record.capture import RouterCapture
from moesim.record.moe_layers import find_moe_layers
from tests.record.families import CONFIGS, VOCABULARY, build

DECODERS = [name for name in CONFIGS if name != "switch"]


@pytest.fixture(scope="module", params=DECODERS)
def routed(request):
    model = build(request.param)
    layers = find_moe_layers(model)
    seen = {}

    def keep(index):
        def hook(_, args, output):
            seen[index] = output

        return hook

    handles = [layer.router.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    with torch.inference_mode(), RouterCapture(layers) as capture:
        model(input_ids=torch.arange(40).remainder(VOCABULARY).view(2, 20))
        captured = capture.take()
    for handle in handles:
        handle.remove()
    return request.param, layers, captured, seen


def test_a_routers_own_logits_give_its_own_choice(routed):
    _, layers, captured, seen = routed
    for index, layer in enumerate(layers):
        ids, weights = layer.layout.choice(seen[index])
        got_ids, got_weights = choose(layer, captured.logits[index])
        assert torch.equal(got_ids, ids)
        assert torch.allclose(got_weights, weights.float(), atol=1e-6)


def test_gate_weights_of_the_chosen_are_the_routers(routed):
    name, layers, captured, seen = routed
    for index, layer in enumerate(layers):
        ids, weights = layer.layout.choice(seen[index])
        if name == "phi-moe":
            with pytest.raises(InputError, match="do not follow from its scores"):
                gate_weights(layer, captured.logits[index], ids)
        else:
            assert torch.allclose(gate_weights(layer, captured.logits[index], ids), weights.float(), atol=1e-3)
