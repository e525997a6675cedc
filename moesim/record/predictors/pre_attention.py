"""Pre-attention prediction (arXiv 2511.10676): layer l's experts from what enters layer l's own attention.

    a     = what enters the attention of layer l, its norm applied                     one net per layer
    arch1 = W_2 dropout(gelu(batchnorm(W_1 a)))      W_1: d -> 2048, W_2: 2048 -> E, dropout 0.1
    arch2 = W_2 silu(W_1 a)                          the same widths, which the paper leaves open for this one

Known before attention, so that the copies have the time of attention, and for the first layer as well. The paper's
accuracies are of the first layer only.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn

from moesim.errors import InputError, nearest
from moesim.record.predictors.predictor import BEFORE_ATTENTION, LayerState, Predictor
from moesim.trace import Availability

ARCHITECTURES: Final = ("arch1", "arch2")
WIDTH: Final = 2048
DROPOUT: Final = 0.1


def pre_attention_net(architecture: str, hidden: int, experts: int, width: int = WIDTH) -> nn.Sequential:
    """One layer's net, [N, hidden] to logits [N, experts].

    Raises:
        InputError: an unknown architecture.
    """
    if architecture == "arch1":
        return nn.Sequential(
            nn.Linear(hidden, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(width, experts)
        )
    if architecture == "arch2":
        return nn.Sequential(nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, experts))
    raise InputError(f"architecture {architecture!r} is unknown: {nearest(architecture, ARCHITECTURES)}")


def nets_from_tensors(tensors: Mapping[str, torch.Tensor], architecture: str) -> list[nn.Sequential]:
    """The nets whose tensors are named `<layer index>.<name in the net>`, in the order of the layers."""
    by_layer: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, inner = name.partition(".")
        by_layer.setdefault(int(index), {})[inner] = tensor
    nets = []
    for _, state in sorted(by_layer.items()):
        width, hidden = state["0.weight"].shape
        last = "4.weight" if architecture == "arch1" else "2.weight"
        net = pre_attention_net(architecture, hidden, len(state[last]), width)
        net.load_state_dict(state)
        nets.append(net.eval())
    return nets


class PreAttention(Predictor):
    """One net per MoE layer on the input of the layer's attention.

    Its scores are the softmax of the nets' logits, which are fitted to rank: they order the experts of a layer and are
    no estimate of the router's probabilities.
    """

    reads_attention_input = True

    def __init__(self, nets: Sequence[nn.Sequential], architecture: str) -> None:
        self._nets = nets
        self.name = f"pre-attention-{architecture}"
        self.availability = Availability(
            layer_offset=0,
            point=BEFORE_ATTENTION,
            description=f"one net per layer ({architecture}) on what enters the layer's own attention "
            "(arXiv 2511.10676)",
        )

    @torch.no_grad()
    def probabilities(self, target: int, state: LayerState) -> torch.Tensor:
        assert state.attention_input is not None, "the capture was not asked for attention_input"
        logits: torch.Tensor = self._nets[target](state.attention_input.float())
        return logits.softmax(-1)
