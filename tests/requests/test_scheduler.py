"""Who is in which step, and when: worked by hand on a machine on which every step takes `S` nanoseconds."""

import pytest

from moesim.devices.fast import FastGPU
from moesim.devices.simulated import SimulatedGPU
from moesim.events import steps
from moesim.requests.arrivals import Arrival
from tests.requests.streams import STEP_NS as S
from tests.requests.streams import serve, trace_of
from tests.traces_for_tests import batched_trace

# A comes at 0 with a prompt of 2 and decodes 2, B at 100 with 3 and 1, C at 200 with a prompt of 1 alone.
TRACE = trace_of((2, 2), (3, 1), (1, 0))
ARRIVALS = (0, 100, 200)


def steps_of(run):
    """Of every step: when it begins and ends in steps' lengths, and who is in it."""
    return [
        (outcome.begin_ns / S, outcome.end_ns / S, "".join("ABC"[number] for number in outcome.step.requests))
        for outcome in run.outcomes
    ]


@pytest.mark.parametrize("device", [FastGPU, SimulatedGPU])
def test_two_at_once(device):
    run = serve(TRACE, ARRIVALS, max_batch=2, device=device)
    assert steps_of(run) == [(0, 1, "A"), (1, 2, "B"), (2, 3, "AB"), (3, 4, "C"), (4, 5, "A")]
    a, b, c = (run.served[number] for number in range(3))
    assert [each.first_token_ns - each.arrival_ns for each in (a, b, c)] == [S, 2 * S - 100, 4 * S - 200]
    assert [each.begin_ns - each.arrival_ns for each in (a, b, c)] == [0, S - 100, 3 * S - 200]
    assert [each.last_token_ns for each in (a, b, c)] == [5 * S, 3 * S, 4 * S]
    assert [each.tokens for each in (a, b, c)] == [3, 2, 1]
    columns = run.latency.columns()
    assert columns["itl_mean_ns"] == (2 * S + 2 * S + S) / 3
    assert columns["output_tokens_per_s"] == pytest.approx(6 / (5 * S / 1e9))
    assert columns["arrived_per_s"] == pytest.approx(2 / 200e-9)
    assert columns["requests_per_s"] == pytest.approx(3 / (5 * S / 1e9))


def test_throughput_is_that_of_departures_behind_the_warm_up():
    """B leaves first, at 3 S; behind it a token of C and one of A, with which both leave, until 5 S."""
    columns = serve(TRACE, ARRIVALS, max_batch=2, warmup=1).latency.columns()
    assert columns["requests_per_s"] == columns["output_tokens_per_s"] == pytest.approx(2 / (2 * S / 1e9))
    assert columns["requests_measured"] == 2, "by arrival: B and C"
    assert columns["queueing_mean_ns"] == (S - 100 + 3 * S - 200) / 2


def test_one_at_a_time():
    run = serve(TRACE, ARRIVALS, max_batch=1)
    assert "".join(who for _, _, who in steps_of(run)) == "AAABBC"


def test_whoever_does_not_fit_waits_and_nobody_overtakes():
    """A and B hold 4 tokens each, C one: of 5, B waits for A's end, and C behind B although it would fit."""
    run = serve(TRACE, ARRIVALS, kv_tokens=5)
    assert steps_of(run) == [(0, 1, "A"), (1, 2, "A"), (2, 3, "A"), (3, 4, "BC"), (4, 5, "B")]
    assert run.scheduler.kv_peak_bytes == 5


def test_prompts_share_a_step_up_to_its_tokens():
    run = serve(TRACE, ARRIVALS, kv_tokens=5, max_prefill_tokens=3)
    assert [who for _, _, who in steps_of(run)] == ["A", "A", "A", "B", "C", "B"]
    run = serve(TRACE, ARRIVALS, max_prefill_tokens=1)
    assert [who for _, _, who in steps_of(run)] == ["A", "B", "C", "AB", "A"], "one prompt always runs"


def test_a_long_pause_is_idle_time_of_the_host():
    run = serve(TRACE, (0, 50 * S, 90 * S))
    assert [begin for begin, _, _ in steps_of(run)] == [0, 1, 2, 50, 51, 90]
    assert run.latency.time.idle_ns == (50 - 3 + 90 - 52) * S
    assert run.latency.time.total_ns == 91 * S
    assert [outcome.time.total_ns for outcome in run.outcomes] == [S] * 6


def test_lengths_cut_the_recorded_request():
    run = serve(TRACE, [Arrival(0, prompt_tokens=1, output_tokens=2), Arrival(0, output_tokens=1)])
    assert [outcome.step.tokens for outcome in run.outcomes] == [1 + 3, 1]
    assert [outcome.step.context_tokens for outcome in run.outcomes] == [2, 2], "(1 + 3) / 2; 1 + 1"
    assert run.outcomes[1].step.rows.tolist() == [2], "behind the prompt's one token comes the first decoded one"
    assert {number: each.tokens for number, each in run.served.items()} == {0: 2, 1: 1}


def test_one_recording_replayed_twice_at_once_is_two_sequences():
    run = serve(trace_of((0, 2)), (0, 0))
    assert [(o.step.tokens, o.step.requests, o.step.pairs) for o in run.outcomes] == [(2, [0, 1], [4])] * 2
    assert run.outcomes[0].step.places == [(0, 0), (1, 0)]
    assert all(len(o.step.accesses[0]) == 2 for o in run.outcomes), "they choose alike"


def test_a_step_of_rows_from_anywhere_reads_what_the_batch_recorded_there():
    """Rows of a batched recording, in the same order and by index: everything a policy is told is the same."""
    trace = batched_trace(12, batch=3)
    run = serve(trace, (0, 0, 0))
    for outcome, recorded in zip(run.outcomes, steps(trace), strict=True):
        served = outcome.step
        assert served.accesses == recorded.accesses
        assert served.places == recorded.places
        assert served.requests == recorded.requests
        for layer in range(trace.layers):
            assert served.touch_order(layer) == recorded.touch_order(layer)
            assert served.gates(layer) == recorded.gates(layer)
            numbers = [layer * trace.n_experts + expert for expert in served.accesses[layer]]
            assert served.pairs_of(layer, numbers, trace.n_experts) == recorded.pairs_of(
                layer, numbers, trace.n_experts
            )
