"""Small models, traces and jobs for the real devices, and what must hold of any run on one of them."""

import yaml

from hw_validate.worlds import job, simulate
from moesim.errors import ConfigError
from moesim.policies.composition import known_policies, parse
from moesim.run import RunConfig
from moesim.trace import Trace
from tests.traces_for_tests import PREDICTOR, random_trace

CONTEXT_TOKENS = 16
ALL_POLICIES = sorted(known_policies())
LOSSLESS = [name for name in ALL_POLICIES if parse(name).lossless]


def write_model(folder, *, layers, experts, top_k, hidden, expert_intermediate, head_size, precision="bf16"):
    """A model of nothing but attention and routed experts, as a YAML file; two query heads share one of keys."""
    path = folder / f"tiny-{precision}.yaml"
    path.write_text(yaml.safe_dump({
        "name": path.stem, "source": "made for a test", "layers": layers, "experts": experts, "top_k": top_k,
        "hidden": hidden, "expert_intermediate": expert_intermediate, "heads": 4, "kv_heads": 2,
        "head_size": head_size, "vocabulary": 96, "precision": precision, "expert_precision": precision,
    }))
    return path


def write_trace(path, model, steps, batch=1, **more):
    """A random trace with weights and predictions, `batch` tokens a step."""
    trace = random_trace(steps * batch, model.layers, model.experts, model.top_k, **more)
    if batch > 1:
        place = trace.position
        trace = Trace(
            experts=trace.experts, weights=trace.weights, step=place // batch, request=place % batch,
            position=place // batch, phase=trace.phase, metadata=trace.metadata, predicted=trace.predicted,
        )
    trace.save(path)
    return path


def make_job(trace, model, policy, cache_fraction, *, warmup=2, measured=6, instrumented=2, batch=1, engine="graph"):
    """A job of `hw_validate.worlds`; the whole window is `warmup + measured + instrumented` decode steps."""
    config = RunConfig(
        trace=trace, model=str(model), hardware="h200", engine=engine, policy=with_predictor(policy),
        cache_fraction=cache_fraction, context_tokens=CONTEXT_TOKENS, warmup_tokens=warmup * batch,
        measured_tokens=(measured + instrumented) * batch,
    )
    return job(config, warmup, measured, instrumented)


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
