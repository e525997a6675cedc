"""Work lists of the expert kernels against a search through the trace, choice by choice."""

import pytest

from hw_validate.pairs import pairs_of_events
from moesim.decision import Decision, Wave
from moesim.events import steps
from moesim.trace import Trace
from tests.hw_validate.cells_on_devices import BATCH, EXECUTED_OTHERWISE
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace


def searched(table, experts, layer, number):
    """The pairs of one expert, numbered over all layers, by looking at every choice of every token of the step."""
    top_k = table.shape[2]
    return [
        token * top_k + choice
        for token in range(len(table)) for choice in range(top_k)
        if layer * experts + int(table[token, layer, choice]) == number
    ]


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("policy", ["lru", "prefetch-and-refetch", *EXECUTED_OTHERWISE])
def test_every_executed_expert_serves_exactly_the_tokens_that_chose_it(cpu_machine, policy, batch):
    work = cpu_machine.job(policy, 0.25, batch)
    trace = Trace.load(cpu_machine.trace[batch])
    speculates = policy == "speculate-and-execute"
    assert work.predictor == (PREDICTOR if speculates else None)
    found = list(pairs_of_events(trace, work.window(), work.decisions, work.predictor))
    layers = trace.layers
    assert len(found) == len(work.decisions) == layers * len(list(steps(trace)))
    for event, (pairs, decision) in enumerate(zip(found, work.decisions, strict=True)):
        step, layer = divmod(event, layers)
        rows = slice(step * batch, (step + 1) * batch)
        # What a speculating policy executes is what was foreseen, but for the first layer, which nothing foresees.
        foreseen = trace.predicted[PREDICTOR].ranking[rows, :, : trace.top_k]
        table = foreseen if speculates and layer else trace.experts[rows]
        executed = {expert for wave in decision.waves for expert in wave.execute}
        assert pairs == {number: searched(table, trace.n_experts, layer, number) for number in executed}
        if policy != "resident-execute":  # every choice is served once
            assert sorted(pair for served in pairs.values() for pair in served) == list(range(batch * trace.top_k))


def test_a_dropped_choice_is_no_pair_and_waves_share_one_list():
    trace = batched_trace(tokens=12, batch=3, dropped=0.5)
    assert (trace.experts[:] == trace.absent).any()
    window = list(steps(trace))
    decisions = []
    for step in window:
        for layer in range(step.layers):
            accessed = [layer * trace.n_experts + expert for expert in step.accesses[layer]]
            waves = [Wave([], accessed[:2], [0, 1]), Wave([], accessed[2:], [0, 1])]
            decisions.append(Decision(layer, waves, [], reads_router=True, needs_true_ids=True))
    for event, pairs in enumerate(pairs_of_events(trace, window, decisions, None)):
        step, layer = divmod(event, trace.layers)
        chosen = trace.experts[3 * step : 3 * step + 3, layer].ravel()
        present = [pair for pair, expert in enumerate(chosen) if expert != trace.absent]
        assert sorted(pair for served in pairs.values() for pair in served) == present


def test_prefill_serves_every_token_of_the_prompt():
    trace = random_trace(tokens=7, prompt=5)
    prefill = next(iter(steps(trace)))
    assert prefill.tokens == 5
    numbers = [
        [layer * trace.n_experts + expert for expert in prefill.accesses[layer]] for layer in range(prefill.layers)
    ]
    decisions = [
        Decision(layer, [Wave([], executed, list(range(len(executed))))], [], reads_router=True, needs_true_ids=True)
        for layer, executed in enumerate(numbers)
    ]
    for layer, pairs in enumerate(pairs_of_events(trace, [prefill], decisions, None)):
        assert set(pairs) == set(numbers[layer])
        for number, served in pairs.items():
            assert served == searched(trace.experts[:5], trace.n_experts, layer, number)
