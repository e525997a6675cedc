"""The harness without a GPU: what the CPU device did is what the simulator did, and bit for bit the true outputs."""

import numpy as np
import pytest

from hw_validate.cpu import CpuDense, CpuDevice
from hw_validate.driver import HardwareError
from hw_validate.measured import measure
from moesim.model import ModelSpec
from moesim.timeline import Timeline
from moesim.trace import Trace
from tests.hw_validate.cells_on_devices import BATCH, EXECUTED_OTHERWISE, LOSSLESS, STEPS, differences


@pytest.mark.parametrize(("slots", "batch"), [("none", 1), ("top-k", BATCH), ("top-k", 1), ("25%", 1), ("50%", BATCH)])
@pytest.mark.parametrize("policy", [*LOSSLESS, *EXECUTED_OTHERWISE])
def test_a_run_is_the_simulated_one_and_lossless_policies_give_the_true_outputs(cpu_machine, policy, slots, batch):
    cache_fraction = {"none": 0.0, "top-k": cpu_machine.top_k_slots, "25%": 0.25, "50%": 0.5}[slots]
    work, ran = cpu_machine.run(policy, cache_fraction, batch)
    assert differences(ran, work) == []
    assert sum(map(len, ran.deeds.executed)) > 0
    assert all(tag >= 0 for event in ran.deeds.executed for tag in event)
    assert len(ran.clocked.outcomes) == STEPS
    if policy in LOSSLESS:
        assert ran.output_sha256 == cpu_machine.truth(batch)


def test_wrong_experts_give_other_outputs(cpu_machine):
    _, speculated = cpu_machine.run("speculate-and-execute", 0.5)
    assert speculated.output_sha256 != cpu_machine.truth()


# ---- the arithmetic, against the model written out in float64


def norm(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def rotated(heads, position):
    """Rotary embedding with base 1e6, halves rotated against each other."""
    half = heads.shape[-1] // 2
    angle = position * 1e6 ** (-np.arange(half) / half)
    turned = (heads[..., :half] + 1j * heads[..., half:]) * np.exp(1j * angle)
    return np.concatenate((turned.real, turned.imag), axis=-1)


def outputs_in_float64(machine, batch, executed):
    """The residual stream behind the last step, [batch, hidden]; each sequence on its own, one token at a time.

    Experts that are not among the event's `executed` give nothing.
    """
    spec, dense, trace = machine.spec, machine.dense[batch], Trace.load(machine.trace[batch])
    wide = {
        name: getattr(dense, name).double().numpy()
        for name in ("embedding", "output", "qkv", "attended", "routers", "keys", "values")
    }
    shape = (spec.expert_intermediate, spec.hidden)
    blocks = [machine.host.block(expert)[: spec.expert_bytes].numpy() for expert in range(machine.experts)]
    matrices = [block.view(np.float32).astype(float).reshape(3, -1) for block in blocks]
    outputs = []
    for sequence in range(batch):
        token = 0
        for step in range(STEPS):
            x = wide["embedding"][token]
            for layer in range(spec.layers):
                heads = (wide["qkv"][layer] @ norm(x)).reshape(-1, spec.head_size)
                queries, key, value = np.split(heads, [spec.heads, spec.heads + spec.kv_heads])
                position = dense.context_tokens - 1
                given = []
                for head, query in enumerate(rotated(queries, position)):
                    shared = head * spec.kv_heads // spec.heads
                    keys, values = wide["keys"][layer, sequence, shared], wide["values"][layer, sequence, shared]
                    keys[-1], values[-1] = rotated(key, position)[shared], value[shared]
                    given.append(softmax(keys @ query / spec.head_size**0.5) @ values)
                x = x + wide["attended"][layer] @ np.concatenate(given)
                y = norm(x)
                gates = softmax(np.sort(wide["routers"][layer] @ y)[::-1][: spec.top_k])
                for gate, expert in zip(gates, trace.experts[step * batch + sequence, layer], strict=True):
                    number = layer * spec.experts + int(expert)
                    if number not in executed[step * spec.layers + layer]:
                        continue
                    first, second, third = matrices[number]
                    z = first.reshape(shape) @ y
                    z = z / (1 + np.exp(-z)) * (second.reshape(shape) @ y)
                    x = x + gate * (third.reshape(shape[::-1]) @ z)
            token = int(np.argmax(wide["output"] @ norm(x)))
        outputs.append(x)
    return np.array(outputs)


@pytest.mark.parametrize("policy", ["lru", "resident-execute"])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_outputs_are_those_of_the_model_written_out(wide_cpu_machine, policy, batch):
    machine = wide_cpu_machine
    work, ran = machine.run(policy, 0.25, batch)
    assert differences(ran, work) == []
    assert any(each.stood_in for each in work.decisions) == (policy == "resident-execute")
    expected = outputs_in_float64(machine, batch, ran.deeds.executed)
    np.testing.assert_allclose(machine.dense[batch].residual.numpy(), expected, rtol=1e-4)


# ---- timeline and refusals


def test_a_timeline_shows_every_group_and_copy_of_the_instrumented_steps(cpu_machine):
    timeline = Timeline(cpu_machine.spec.experts)
    _, ran = cpu_machine.run("lru", 0.25, timeline=timeline)
    shown = slice((STEPS - 2) * cpu_machine.spec.layers, None)
    per_track = {track: [each for each in timeline.slices if each.track == track] for track in timeline.tracks}
    names = [each.name for each in per_track["compute"]]
    assert names.count("attention") == names.count("router") == 2 * cpu_machine.spec.layers
    assert names.count("head") == 2
    assert len(per_track["host"]) == len(names)
    copies = [(each.layer, each.expert) for each in per_track["copies"]]
    assert copies == [divmod(expert, 8) for event in ran.deeds.copies[shown] for expert, _ in event]
    for track in ("compute", "copies"):
        ends = [0] + [each.end_ns for each in per_track[track]]
        assert all(each.start_ns >= end for each, end in zip(per_track[track], ends, strict=False))


def test_a_failure_on_a_stream_is_raised_and_not_waited_for(cpu_machine):
    class Broken(CpuDevice):
        def execute(self, slot, pairs):
            raise ArithmeticError("no such product")

    with pytest.raises(ArithmeticError, match="no such product"):
        cpu_machine.run("lru", 0.25, make_device=Broken)


def test_steps_of_another_size_are_refused(cpu_machine):
    work = cpu_machine.job("lru", 0.25, BATCH)
    with pytest.raises(HardwareError, match=r"^attention: a step of 3 tokens; this engine was made for 1$"):
        measure(work, cpu_machine.dense[1], cpu_machine.host)


@pytest.mark.parametrize(("model", "tokens", "sequences", "line"), [
    ("deepseek-v2-lite", 1, 1, "deepseek-v2-lite: only models whose layers all are attention and routed experts"),
    ("gpt-oss-20b", 1, 1, "gpt-oss-20b: only models whose layers all are attention and routed experts"),
    ("olmoe-1b-7b", 5, 2, "5 tokens of 2 sequences in a context of 16: a step decodes one token of each"),
    ("olmoe-1b-7b", 512, 512, "a step of 512 tokens with 8 experts each: at most 1024 pairs"),
])
def test_shapes_that_the_engine_does_not_have_are_refused_in_a_line(model, tokens, sequences, line):
    with pytest.raises(HardwareError) as refusal:
        CpuDense(ModelSpec.load(model), 1, tokens, sequences, context_tokens=16)
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)


def test_precisions_other_than_the_two_are_refused():
    half = ModelSpec.load("olmoe-1b-7b").model_copy(update={"precision": "fp16", "expert_precision": "fp16"})
    with pytest.raises(HardwareError, match="only bf16 or fp32 models with gate, up and down matrices run here"):
        CpuDense(half, 1, 1, 1, context_tokens=16)
