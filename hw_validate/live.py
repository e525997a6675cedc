"""Live: a trained model decodes through the replay loop, and its own router decides.

The dense work is the model's: its embeddings, norms, attention with its growing cache, routers and head, with the
weights of a transformers checkpoint. Its experts lie in host memory and come to slots as a policy has it; what the
router chose is read back before the policy is asked, and the time that the policy takes is host time like the rest.

    step -> attention, router -> ids on the host -> Decider -> copies -> expert kernels -> ... -> head -> the next token

Policies that read predictions need a channel that nobody records here, and are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hw_validate.cpu_dense import CpuDense
from hw_validate.dense import Captured, DenseLayers
from hw_validate.driver import HardwareError
from hw_validate.measured import device_of
from hw_validate.pairs import Pairs
from hw_validate.storage import HostExperts, Slots
from moesim.capacity import Capacity
from moesim.decide import Decider
from moesim.decision import Decision
from moesim.engine import EngineSpec
from moesim.errors import ConfigError
from moesim.events import DECODE, Step
from moesim.model import ModelSpec
from moesim.policies.composition import Policy
from moesim.replay import Replay, StepOutcome
from moesim.run import paused_collector
from moesim.trace import Trace, TraceMetadata, id_dtype


@dataclass(frozen=True)
class LiveRun:
    """What came of decoding. T tokens in all, V entries of the vocabulary."""

    tokens: list[int]
    """The prompt, and what the model wrote behind it."""
    logits: torch.Tensor
    """[T - 1, V] float32 on the host: after every token but the last."""
    trace: Trace
    """Whom the router chose, token by token: a recording like any other."""
    executed: list[list[int]]
    """Per event, the tags that the kernels read."""
    step_ns: list[int]
    hits: int
    accesses: int


class _Group:
    """A dense group that is launched eagerly, where a captured one would be replayed: its shapes grow."""

    def __init__(self, enqueue: Any) -> None:
        self.replay = enqueue


class _LiveDense:
    """The dense layers of a checkpoint in the place of random ones. Mixed into the GPU's or the CPU's."""

    norms: torch.Tensor
    routers: torch.Tensor
    embedding: torch.Tensor
    output: torch.Tensor
    token: torch.Tensor
    residual: torch.Tensor
    normed: torch.Tensor

    def norm_residual(self, norm: int) -> None:
        """The norm of that number of the residual stream as it is."""
        raise NotImplementedError

    def add_experts(self, norm: int) -> None:
        """Add what the experts gave to the residual stream, and norm."""
        raise NotImplementedError

    def add_attended(self, out: torch.Tensor, norm: int) -> None:
        """Add what attention gave to the residual stream, and norm."""
        raise NotImplementedError

    def take(self, checkpoint: Any, prompt: list[int]) -> None:
        """Use the checkpoint's weights, and feed it `prompt` token by token before it feeds itself."""
        from transformers import DynamicCache

        inner: Any = checkpoint.model
        self._inner = inner
        self._prompt = prompt
        self._position = 0
        self._cache = DynamicCache()
        self.logits: list[torch.Tensor] = []
        self.fed: list[int] = []
        layers = list(inner.layers)
        norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        with torch.no_grad():
            for row, norm in enumerate([*norms, inner.norm]):
                self.norms[row].copy_(norm.weight)
            for row, layer in enumerate(layers):
                self.routers[row].copy_(layer.mlp.gate.weight)
            self.embedding.copy_(inner.embed_tokens.weight)
            self.output.copy_(checkpoint.lm_head.weight)

    def attention(self, layer: int) -> None:
        """As the random layers', with the checkpoint's own attention in the middle."""
        if layer == 0:
            if self._position < len(self._prompt):
                self.token.fill_(self._prompt[self._position])
            self.fed.append(int(self.token))
            self.residual.copy_(self.embedding[self.token])
            self.norm_residual(0)
        else:
            self.add_experts(2 * layer)
        here = torch.tensor([[self._position]], device=self.residual.device)
        with torch.no_grad():
            x = self.normed[None]
            rotation = self._inner.rotary_emb(x, here)
            out = self._inner.layers[layer].self_attn(
                x, position_embeddings=rotation, attention_mask=None, past_key_values=self._cache
            )[0]
        self.add_attended(out[0], 2 * layer + 1)

    def head(self) -> None:
        """As the random layers', and the logits are kept."""
        super().head()  # type: ignore[misc]
        self.logits.append((self.normed[-1] @ self.output.T).float().cpu())
        self._position += 1


class LiveGPU(_LiveDense, DenseLayers):
    """A checkpoint's dense layers on the GPU, launched eagerly on the compute stream."""

    def capture(self) -> None:
        """Nothing is captured, since the cache of keys and values grows; every group is made ready."""
        kernel = self.model.attention_kernel(1, self.context_tokens)
        for layer in range(self.layers):
            for name, enqueue in (("attention", self.attention), ("router", self.router)):
                group = _Group(partial(enqueue, layer))
                self.groups[name, layer] = Captured(name, "attention", layer, kernel, 0, 1, group, name == "router")
        self.groups["head", -1] = Captured("head", "attention", -1, kernel, 0, 1, _Group(self.head), True)

    def norm_residual(self, norm: int) -> None:
        """See _LiveDense."""
        self._add_norm(self._added, None, 0, norm)

    def add_experts(self, norm: int) -> None:
        """See _LiveDense."""
        self._add_norm(self.pair_out, self.gates, self.model.top_k, norm)

    def add_attended(self, out: torch.Tensor, norm: int) -> None:
        """See _LiveDense."""
        self._added.copy_(out)
        self._add_norm(self._added, None, 1, norm)


class LiveCpu(_LiveDense, CpuDense):
    """A checkpoint's dense layers on the processor."""

    def capture(self) -> None:
        """Nothing to capture."""

    def norm_residual(self, norm: int) -> None:
        """See _LiveDense."""
        self._norm(norm)

    def add_experts(self, norm: int) -> None:
        """See _LiveDense."""
        self._add_experts(norm)

    def add_attended(self, out: torch.Tensor, norm: int) -> None:
        """See _LiveDense."""
        self.residual += out
        self._norm(norm)


def fill_from(checkpoint: Any, host: HostExperts, dtype: torch.dtype) -> None:
    """The checkpoint's experts into host memory, each as gate, up, down and its tag."""
    for number, layer in enumerate(checkpoint.model.layers):
        experts = layer.mlp.experts
        for expert in range(experts.gate_up_proj.shape[0]):
            name = number * experts.gate_up_proj.shape[0] + expert
            parts = (experts.gate_up_proj[expert], experts.down_proj[expert])
            weights = torch.cat([part.detach().to("cpu", dtype).flatten() for part in parts])
            block = host.block(name)
            block[: host.expert_bytes].copy_(weights.view(torch.uint8))
            block[host.expert_bytes :].view(torch.int64).fill_(name)


class _LiveDecisions:
    """A policy, asked about what the router has just chosen. Also tells the device whom each expert serves."""

    def __init__(self, decider: Decider, device: Any, dense: Any, trace: Trace) -> None:
        self._decider, self._device, self._dense, self._trace = decider, device, dense, trace
        self._now: Pairs = {}
        self.made: list[Decision] = []
        device.pairs = iter(self._next_pairs, None)

    def _next_pairs(self) -> Pairs:
        return self._now

    def begin(self, step: Step) -> None:
        self._decider.begin(step)

    def foresee(self, step: Step, number: int) -> Decision:
        return self._decider.foresee(step, number)

    def decide(self, step: Step, layer: int) -> Decision:
        device, trace = self._device, self._trace
        for _ in device.read_back(device.record(device.compute)):
            pass
        chosen = self._dense.host_ids[: trace.top_k].tolist()
        step.accesses[layer][:] = chosen
        trace.experts[step.rows, layer] = chosen
        base = layer * trace.n_experts
        self._now = {base + expert: (choice,) for choice, expert in enumerate(chosen)}
        decision = self._decider.decide(step, layer)
        self.made.append(decision)
        return decision

    def finish(self, layer: int) -> None:
        self._decider.finish(layer)


def _empty_trace(model: ModelSpec, tokens: int) -> Trace:
    """Room for the routing of so many tokens."""
    layers, kind = len(model.moe_layers), id_dtype(model.experts)
    metadata = TraceMetadata(
        name=f"{model.name}-live", model=model.name, layers=layers, experts=model.experts, top_k=model.top_k,
        moe_layers=model.moe_layers, dataset="", tokenizer="", decoding="greedy", recorder="hw_validate.live",
        recorder_version="1", licence="", source="",
    )
    return Trace(
        experts=np.full((tokens, layers, model.top_k), np.iinfo(kind).max, dtype=kind), weights=None,
        step=np.arange(tokens, dtype=np.uint32), request=np.zeros(tokens, dtype=np.uint32),
        position=np.arange(tokens, dtype=np.uint32), phase=np.full(tokens, DECODE, dtype=np.uint8), metadata=metadata,
    )


@paused_collector()
def decode(
    checkpoint: Any, model: ModelSpec, policy: Policy, slots: int, prompt: list[int], tokens: int, device: str
) -> LiveRun:
    """Decode greedily behind `prompt` until there are `tokens` tokens, with `slots` slots (0: a workspace) for experts.

    `checkpoint`: a transformers model of the Qwen3-MoE kind on `device` ("cuda", bfloat16; "cpu", also float32), with
    eager attention, so that sums have one order. Slots for all experts: everything is resident.

    Raises:
        ConfigError: the policy needs predictions, or the future.
        HardwareError: a model that this engine does not run.
    """
    if policy.oracle or not policy.route.lossless or hasattr(policy.prefetch, "foresight") or policy.draft.longest:
        raise ConfigError(f"policy {policy.name}: live decoding has no predictions; give one that reads none")
    if policy.uses_cpu:
        raise ConfigError(f"policy {policy.name} executes experts on the CPU: live decoding does not")
    layers = len(model.moe_layers)
    everything = slots >= layers * model.experts
    capacity = Capacity(slots or 2 * model.top_k, workspace=slots == 0, everything=everything)
    decider = Decider(policy, layers, model.experts, capacity, largest_event=model.top_k)
    where = torch.device(device)
    kind = LiveGPU if device == "cuda" else LiveCpu
    dense = kind(model, model.layers, 1, 1, tokens)
    dense.take(checkpoint, prompt)
    dense.capture()
    trace = _empty_trace(model, tokens)
    window = _steps(trace, tokens - 1)
    outcomes: list[StepOutcome] = []
    with HostExperts(layers * model.experts, model.expert_bytes, pinned=device == "cuda") as host:
        fill_from(checkpoint, host, dense.residual.dtype)
        runner = device_of(dense, host, Slots(decider.slots, host, where), tokens * layers * model.top_k)
        runner.reset()
        if everything:
            runner.load_everything()
        decisions = _LiveDecisions(decider, runner, dense, trace)
        replay = Replay(window, decisions, runner, model, _live_engine(), decider.slots, outcomes.append)
        runner.start()
        runner.run(replay.program())
        tags = iter(runner.executed())
        executed: list[list[int]] = [[] for _ in decisions.made]
        for event, count in runner.launched:
            for _ in range(count):
                before, behind = next(tags)
                if before != behind:
                    raise HardwareError(f"event {event}: slot of expert {before} was overwritten while it ran")
                executed[event].append(before)
    return LiveRun(
        tokens=[*dense.fed, int(dense.token)], logits=torch.stack(dense.logits), trace=trace, executed=executed,
        step_ns=[outcome.end_ns - outcome.begin_ns for outcome in outcomes],
        hits=sum(decision.hits for decision in decisions.made),
        accesses=sum(decision.hits + decision.misses.total() for decision in decisions.made),
    )


def _steps(trace: Trace, count: int) -> Iterator[Step]:
    """Steps whose routing is not known yet."""
    for row in range(count):
        yield Step(trace, slice(row, row + 1), [[[] for _ in range(trace.layers)]])


def _live_engine() -> EngineSpec:
    """The engine of the replay, with the host waiting for every router: it must, to decide."""
    return EngineSpec.load("graph").model_copy(update={"read_back": "blocking"})


def load_checkpoint(folder: Path, device: str, dtype: torch.dtype) -> tuple[Any, ModelSpec]:
    """A checkpoint on disk and its shape. Raises InputError, one line, for what cannot be loaded."""
    from moesim.record.checkpoint import load_model

    checkpoint, _ = load_model(str(folder), device, {torch.float32: "float32"}.get(dtype, "bfloat16"))
    if not hasattr(checkpoint.model.layers[0].self_attn, "q_norm"):
        raise HardwareError(f"{folder}: live decoding runs models of the Qwen3-MoE kind")
    checkpoint.set_attn_implementation("eager")
    precision = "fp32" if dtype == torch.float32 else "bf16"
    shape = ModelSpec.load(str(folder / "config.json"))
    return checkpoint, shape.model_copy(update={"precision": precision, "expert_precision": precision})
