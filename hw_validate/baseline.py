"""The plain engine that users write: three copies per expert through torch, eager kernels, ids read by `.tolist()`.

It runs the same decisions at cache 0 on the same weights as the engine that is validated, so that the ratio of both
says what care with the host and the link is worth. Nothing of it is in the simulator.
"""

from time import perf_counter_ns

import torch
from torch.nn import functional

from hw_validate.dense import DenseLayers
from hw_validate.storage import HostExperts
from moesim.trace import Trace


class PlainEngine:
    """Decoding at batch 1 with nothing kept on the GPU: on demand, or with predicted experts copied a layer early."""

    def __init__(self, dense: DenseLayers, host: HostExperts) -> None:
        self._dense, self._host = dense, host
        model = dense.model
        shapes = [(model.expert_intermediate, model.hidden)] * 2 + [(model.hidden, model.expert_intermediate)]
        self._shapes = shapes
        new = {"dtype": torch.bfloat16, "device": "cuda"}
        self._room = [
            [[torch.empty(shape, **new) for shape in shapes] for _ in range(model.top_k)] for _ in range(2)  # type: ignore[call-overload]
        ]
        self._copies = torch.cuda.Stream()

    def _matrices(self, expert: int) -> list[torch.Tensor]:
        block = self._host.block(expert)[: self._host.expert_bytes].view(torch.bfloat16)
        parts, start = [], 0
        for rows, columns in self._shapes:
            parts.append(block[start : start + rows * columns].view(rows, columns))
            start += rows * columns
        return parts

    def _fetch(self, experts: list[int], side: int) -> None:
        for place, expert in enumerate(experts):
            for target, source in zip(self._room[side][place], self._matrices(expert), strict=True):
                target.copy_(source, non_blocking=True)

    def decode(self, trace: Trace, warmup: int, measured: int, predictor: str | None = None) -> list[int]:
        """Time of each measured step in ns. With a predictor, its experts are executed, copied one layer ahead."""
        dense, top_k = self._dense, trace.top_k
        ids = trace.experts[: warmup + measured].tolist()
        foreseen = None if predictor is None else trace.predicted[predictor].ranking[:, :, :top_k].tolist()
        times = []
        with torch.cuda.stream(dense.stream):
            for token in range(warmup + measured):
                begin = perf_counter_ns()
                for layer in range(dense.layers):
                    dense.attention(layer)
                    logits = dense.normed @ dense.routers[layer].T
                    logits.float().softmax(-1).topk(top_k).indices.tolist()  # the host waits here
                    base = layer * trace.n_experts
                    if foreseen is None or layer == 0:
                        self._fetch([base + expert for expert in ids[token][layer]], layer % 2)
                    dense.stream.wait_stream(self._copies)
                    if foreseen is not None and layer + 1 < dense.layers:
                        self._copies.wait_stream(dense.stream)
                        with torch.cuda.stream(self._copies):
                            ahead = base + trace.n_experts
                            self._fetch([ahead + expert for expert in foreseen[token][layer + 1]], (layer + 1) % 2)
                    for place in range(top_k):
                        gate, up, down = self._room[layer % 2][place]
                        hidden = functional.silu(dense.normed @ gate.T) * (dense.normed @ up.T)
                        dense.pair_out[place : place + 1].copy_(hidden @ down.T)
                dense.head()
                dense.token.tolist()
                times.append(perf_counter_ns() - begin)
        return times[warmup:]
