"""Small models, traces and jobs for the real devices, and what must hold of any run on one of them."""

from collections import Counter

import numpy as np
import pytest
import torch
import yaml

from hw_validate.measured import device_of, measure
from hw_validate.storage import HostExperts
from hw_validate.worlds import job, simulate
from moesim.errors import ConfigError
from moesim.model import ModelSpec
from moesim.policies.composition import known_policies, parse
from moesim.run_config import RunConfig
from moesim.trace import Trace
from tests.traces_for_tests import PREDICTOR, random_trace

STRESS = [("lru", 3), ("prefetch-and-refetch", 3), ("speculate-and-execute", 3), ("lru", 1)]
"""Policies and batches for slots of one token's experts: three tokens run in waves, all in the same slots."""
CONTEXT_TOKENS = 16
STEPS = 10
BATCH = 3
ALL_POLICIES = sorted(
    name for name in known_policies()
    if not (parse(name).uses_cpu or parse(name).draft.longest or parse(name).route.copies > 1)
)
"""The devices run neither experts on the CPU, nor a draft, nor copies of an expert."""
LOSSLESS = [name for name in ALL_POLICIES if parse(name).lossless]
EXECUTED_OTHERWISE = ["speculate-and-execute", "resident-execute"]
"""Policies that execute other experts than the router chose, and that are validated all the same."""


def write_model(folder, *, layers, experts, top_k, hidden, expert_intermediate, head_size, precision="bf16"):
    """A model of nothing but attention and routed experts, as a YAML file; two query heads share one of keys."""
    path = folder / f"tiny-{precision}.yaml"
    path.write_text(yaml.safe_dump({
        "name": path.stem, "source": "made for a test", "layers": layers, "experts": experts, "top_k": top_k,
        "hidden": hidden, "expert_intermediate": expert_intermediate, "heads": 4, "kv_heads": 2,
        "head_size": head_size, "vocabulary": 96, "precision": precision, "expert_precision": precision,
    }))
    return path


def write_trace(path, model, steps, batch=1):
    """A random trace with weights, all scores and predictions, `batch` tokens a step."""
    trace = random_trace(steps * batch, model.layers, model.experts, model.top_k)
    place = trace.position
    Trace(
        experts=trace.experts, weights=trace.weights, step=place // batch, request=place % batch,
        position=place // batch, phase=trace.phase, metadata=trace.metadata, predicted=trace.predicted,
        scores=scores_for(trace),
    ).save(path)
    return path


def scores_for(trace):
    """Probabilities of all experts, [tokens, layers, experts], highest for those that were chosen and in that order."""
    chosen = trace.experts.astype(int)
    rest = np.ones((*chosen.shape[:2], trace.n_experts))
    np.put_along_axis(rest, chosen, 0, axis=-1)
    others = np.argsort(-rest, axis=-1, kind="stable")[:, :, : trace.n_experts - trace.top_k]
    falling = np.sort(np.random.default_rng(5).dirichlet(np.ones(trace.n_experts), chosen.shape[:2]))[:, :, ::-1]
    scores = np.empty_like(falling)
    np.put_along_axis(scores, np.concatenate((chosen, others), axis=-1), falling, axis=-1)
    return scores.astype(np.float16)


def make_job(trace, model, policy, cache_fraction, batch=1, context_tokens=CONTEXT_TOKENS):
    """A job over `STEPS` decode steps: two of warm-up, six measured, two instrumented.

    Skips the test when the policy asks for more than the test traces have.
    """
    config = RunConfig(
        trace=trace, model=str(model), hardware="h200", engine="graph", policy=with_predictor(policy),
        cache_fraction=cache_fraction, context_tokens=context_tokens, warmup_tokens=2 * batch,
        measured_tokens=(STEPS - 2) * batch,
    )
    try:
        return job(config, warmup_steps=2, measured_steps=STEPS - 4, instrumented_steps=2)
    except ConfigError as error:
        pytest.skip(str(error))


def with_predictor(policy):
    """The policy, reading the only channel that the test traces have."""
    try:
        parse(f"{policy}[predictor={PREDICTOR}]")
    except ConfigError:
        return policy  # it reads none
    return f"{policy}[predictor={PREDICTOR}]"


def differences(ran, work):
    """Everything in which a run on a device is not what the simulator did: empty for a right one."""
    _, deeds, holder = simulate(work, work.run.hardware.at("centre"))
    found = []
    if ran.deeds.executed != deeds.executed:
        found.append("executed")
    if ran.deeds.copies != deeds.copies:
        found.append("copies")
    if ran.held != [holder.get(slot, -1) for slot in range(work.slots)]:
        found.append("held")
    if ran.torn:
        found.append("torn")
    return found


class Machine:
    """A small model with its experts in host memory, and dense layers and a trace for each size of batch."""

    def __init__(self, folder, make_dense, device, *, precision="bf16", batches=(1, BATCH), **shape):
        self.model = write_model(folder, precision=precision, **shape)
        self.spec = ModelSpec.load(str(self.model))
        self.experts = self.spec.layers * self.spec.experts
        self.top_k_slots = self.spec.top_k / self.experts
        """The cache fraction of as many slots as one token chooses experts in a layer."""
        self.dense, self.trace = {}, {}
        for batch in batches:
            self.dense[batch] = make_dense(self.spec, self.spec.layers, batch, batch, CONTEXT_TOKENS)
            self.trace[batch] = write_trace(folder / f"{precision}-{batch}.safetensors", self.spec, STEPS, batch)
        self.host = HostExperts(self.experts, self.spec.expert_bytes, pinned=device == "cuda")
        self.host.fill(torch.device(device), seed=3)
        self._truths = {}

    def job(self, policy, cache_fraction, batch=1):
        return make_job(self.trace[batch], self.model, policy, cache_fraction, batch)

    def run(self, policy, cache_fraction, batch=1, make_device=device_of, **more):
        work = self.job(policy, cache_fraction, batch)
        return work, measure(work, self.dense[batch], self.host, make_device=make_device, **more)

    def truth(self, batch=1):
        """The digest of the outputs with every expert resident."""
        if batch not in self._truths:
            self._truths[batch] = self.run("all-resident", 1.0, batch)[1].output_sha256
        return self._truths[batch]

    def check_stress(self, policy, batch, make_device):
        """Every slot is used again at once, many times, and all is right."""
        work, ran = self.run(policy, self.top_k_slots, batch, make_device)
        assert differences(ran, work) == []
        if policy in LOSSLESS:
            assert ran.output_sha256 == self.truth(batch)
        filled = Counter(slot for event in ran.deeds.copies for _, slot in event)
        assert sorted(filled) == list(range(self.spec.top_k))
        assert min(filled.values()) > STEPS * self.spec.layers // 2
