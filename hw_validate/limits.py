"""How close to the machine the engine runs, and what a plain engine does with the same machine, all in one process.

    copies                 one expert's bytes / the time of a queued copy, against the rate of the largest copies
    on-demand              its TPOT, against bytes / that rate + the compute that cannot overlap
    speculate-and-execute  its TPOT, against the larger of bytes / that rate and compute

Compute is what the kernels take in a chain of their own (calibrate/kernels.py); with on-demand decoding the dense work
of every layer and the last expert's kernels cannot overlap its copies.
"""

import torch

from hw_validate.baseline import PlainEngine
from hw_validate.calibrate.link import LinkBench
from hw_validate.dense import DenseLayers
from hw_validate.harness import Harness
from hw_validate.measured import measure
from hw_validate.measurement import Limit, Limits
from hw_validate.storage import HostExperts
from hw_validate.worlds import world
from moesim.hardware import HardwareSpec
from moesim.window import load_trace

PEAK_BYTES = 352_321_536
WARMUP, STEPS = 4, 16


def measure_limits(harness: Harness, model_name: str, dense: DenseLayers, host: HostExperts) -> Limits:
    """Run the engine and the plain one at cache 0 on one model. `dense` decodes at batch 1."""
    cells = {
        planned.cell.policy.partition("[")[0]: planned for planned in harness.plan.cells[model_name]
        if planned.cell.cache_fraction == 0 and planned.cell.batch_tokens == 1 and planned.cell.phase == "decode"
    }
    hardware = HardwareSpec.load(str(harness.profile_path)).at("centre")
    model = dense.model
    bench = LinkBench(torch.from_numpy(host.bytes[: 3 * PEAK_BYTES]))
    peak = PEAK_BYTES * 1e9 / min(bench.queued_ns(PEAK_BYTES, records=False) for _ in range(3))
    expert_ns = min(bench.queued_ns(host.stride_bytes, records=True, waiting=True) for _ in range(3))
    queued = host.stride_bytes * 1e9 / expert_ns
    del bench
    layers = len(model.moe_layers)
    attention = model.attention_kernel(1, dense.context_tokens)
    dense_ns = layers * (
        hardware.kernel_ns(attention, "graph", 1) + hardware.kernel_ns(model.router_kernel(1), "graph", 1)
    ) + hardware.kernel_ns(model.head_kernel(1), "graph", 1)
    one_ns = hardware.kernel_ns(model.experts_kernel(1, 1), "graph", 1)
    all_ns = hardware.kernel_ns(model.experts_kernel(model.top_k, model.top_k), "graph", 1)
    limits = [
        Limit(
            name="copies", what=f"Rate of queued copies of one expert ({model.expert_bytes / 1e6:.1f} MB)",
            measured=queued, bound=peak, unit="bytes/s", ratio=queued / peak, target=0.95,
        )
    ]
    engine: dict[str, float] = {}
    baselines: dict[str, float] = {}
    plain = PlainEngine(dense, host)
    for policy, target in (("on-demand", 1.05), ("speculate-and-execute", 1.03)):
        work = harness.job(cells[policy])
        ran = measure(work, dense, host)
        told = world(ran.clocked, ran.deeds, work.decisions, layers, model.expert_bytes)
        engine[policy] = told.tpot_ns
        bytes_ns = told.bytes_copied / len(told.step_ns) * 1e9 / peak
        compute_ns = dense_ns + layers * (one_ns if policy == "on-demand" else all_ns)
        bound = bytes_ns + compute_ns if policy == "on-demand" else max(bytes_ns, compute_ns)
        rule = "copies and the compute that cannot overlap"
        if policy != "on-demand":
            rule = "the larger of copies and compute"
        limits.append(
            Limit(
                name=policy, what=f"Time per output token of {policy} at cache 0, against {rule}",
                measured=told.tpot_ns, bound=bound, unit="ns", ratio=told.tpot_ns / bound, target=target,
            )
        )
        times = plain.decode(load_trace(work.run.config.trace), WARMUP, STEPS, work.predictor)
        baselines[policy] = sum(times) / len(times)
    return Limits(limits=limits, baselines=baselines, engine=engine, baseline_model=model_name)
