"""The states that a predictor is fitted on: text through the frozen model, one batch at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from moesim.record.capture import Captured, RouterCapture
from moesim.record.moe_layers import MoeLayer


def captured_batches(
    model: nn.Module, layers: Sequence[MoeLayer], batches: Sequence[torch.Tensor], *, attention_input: bool = False
) -> Iterator[Captured]:
    """What the routers saw and chose in each of `batches`, token ids [sequences, tokens], moved to the model's device.

    Nothing of the model gets a gradient, yet what comes out may be trained on.
    """
    device = next(model.parameters()).device
    for batch in batches:
        # The hooks are gone when the states are handed out: whoever fits calls the model's norms and routers again.
        with RouterCapture(layers, attention_input=attention_input) as capture, torch.no_grad():
            model(input_ids=batch.to(device), use_cache=False, logits_to_keep=1)
            captured = capture.take()
        yield captured
