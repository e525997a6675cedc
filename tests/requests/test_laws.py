"""Laws of queueing that hold whatever the system: waiting times in closed form, Little's law, conservation."""

from itertools import pairwise
from math import sqrt
from statistics import mean, stdev

import pytest

from moesim.requests.arrivals import poisson
from tests.properties.runs import KERNELS_NS
from tests.requests.streams import PLAIN, serve, trace_of

S = sum(KERNELS_NS.values())


def arrivals(load, count, seed, service_ns=S):
    """A Poisson process that keeps one server busy for a share `load` of the time."""
    return [arrival.arrival_ns for arrival in poisson(load / (service_ns / 1e9), count, seed)]


@pytest.fixture(scope="module")
def one_token():
    """Requests of one token each."""
    return trace_of(*[(0, 1)] * 3)


def test_waiting_times_follow_lindley(one_token):
    """W(n+1) = max(0, W(n) + S - gap): Lindley's recursion (1952), to the nanosecond."""
    instants = arrivals(0.8, 2000, seed=1)
    served = serve(one_token, instants, max_batch=1).served
    wait = 0
    for number, (arrival, following) in enumerate(pairwise(instants)):
        assert served[number].begin_ns - arrival == wait
        wait = max(0, wait + S - (following - arrival))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_that_of_m_d_1(one_token, load):
    """Pollaczek and Khinchine: load · S / (2 · (1 - load)) for Poisson arrivals and constant service.

    The mean of independent runs lies within 4 standard errors (1 in 16,000 by chance); these are so small that
    exponential service, whose wait is twice as long, would be farther away than 15 of them.
    """
    means = []
    for seed in range(12):
        waits = serve(one_token, arrivals(load, 1200, seed), max_batch=1, warmup=200).latency.columns()
        means.append(waits["queueing_mean_ns"])
    expected = load * S / (2 * (1 - load))
    error = stdev(means) / sqrt(len(means))
    assert abs(mean(means) - expected) < 4 * error
    assert 15 * error < expected


@pytest.mark.parametrize("batch", [1, 4])
def test_saturated_service_has_a_rate_in_closed_form(batch):
    """Everybody waits from the start: `batch` equal requests share a prompt's step and each of their decode steps."""
    decoded, count = 6, 20
    columns = serve(trace_of((2, decoded)), [0] * count, max_batch=batch).latency.columns()
    per_request_ns = (1 + decoded) * S / batch
    assert columns["requests_per_s"] == pytest.approx(1e9 / per_request_ns, rel=1e-12)
    assert columns["output_tokens_per_s"] == pytest.approx((1 + decoded) * 1e9 / per_request_ns, rel=1e-12)
    assert columns["queueing_mean_ns"] == pytest.approx((count // batch - 1) / 2 * batch * per_request_ns)


def test_little():
    """L = λ · W: the area under the number in the system, as the steps show it, is the sum of the requests' times."""
    instants = arrivals(0.6, 500, seed=3)
    run = serve(trace_of((2, 3), (1, 4), (0, 2), layers=2), instants, "lru", 3, max_batch=4)
    left_ns = {}
    for outcome in run.outcomes:
        for number in outcome.step.requests:
            left_ns[number] = outcome.end_ns
    changes = sorted([(instant, 1) for instant in instants] + [(instant, -1) for instant in left_ns.values()])
    area = number = 0
    for (instant, change), (following, _) in pairwise([*changes, (changes[-1][0], 0)]):
        number += change
        area += number * (following - instant)
    assert number == 0
    columns = run.latency.columns()
    end = run.outcomes[-1].end_ns
    mean_number = area / (end - instants[0])
    assert mean_number == pytest.approx(columns["requests_per_s"] / 1e9 * columns["e2e_mean_ns"], rel=1e-12)
    assert mean_number > 4, "there is a queue"


def test_conservation_at_ten_thousand_requests():
    """Requests in = requests out, tokens, bytes, time and slots, over a stream of three kinds of requests."""
    count, slots, batch, kv_tokens = 10_000, 3, 3, 9
    trace = trace_of((2, 2), (0, 1), (3, 1))
    instants = arrivals(0.45, count, seed=7, service_ns=4 * S)
    run = serve(trace, instants, "lru", slots, max_batch=batch, kv_tokens=kv_tokens)
    assert sorted(each.number for each in run.latency.finished) == list(range(count))
    assert all(each.tokens == (3, 1, 2)[each.number % 3] for each in run.latency.finished)
    returned = sum(each.tokens for each in run.latency.finished)
    assert sum(len(outcome.step.requests) for outcome in run.outcomes) == returned

    held = {0: 4, 1: 1, 2: 4}
    most = 0
    running, seen = set(), {}
    for outcome in run.outcomes:
        step = outcome.step
        assert len(step.requests) <= batch
        running |= set(step.requests)
        most = max(most, sum(held[number % 3] for number in running))
        for number in step.requests:
            seen[number] = seen.get(number, 0) + 1
            if seen[number] == (3, 1, 2)[number % 3]:
                running.remove(number)
        waves = outcome.decisions[0].waves
        assert sorted(expert for wave in waves for expert in wave.execute) == sorted(step.accesses[0])
        assert all(len(set(wave.slots)) == len(wave.slots) <= slots for wave in waves)
    assert not running
    assert most == run.scheduler.kv_peak_bytes == kv_tokens, "the limit holds, and is reached"

    time = run.latency.time
    assert time.total_ns == run.outcomes[-1].end_ns
    busy = sum(outcome.time.total_ns for outcome in run.outcomes)
    idle = instants[0] + sum(
        max(0, following.begin_ns - outcome.end_ns) for outcome, following in pairwise(run.outcomes)
    )
    assert busy + idle == time.total_ns
    copies = sum(outcome.copies for outcome in run.outcomes)
    assert copies == sum(outcome.decisions[0].misses.total() for outcome in run.outcomes) > 0
    assert run.device.link_busy_ns == copies * run.model.expert_bytes, "a byte takes a nanosecond here"


def test_a_step_costs_the_same_whenever_it_begins(one_token):
    """Constant service is what the closed form speaks of."""
    run = serve(one_token, arrivals(0.5, 300, seed=2), max_batch=1, hardware=PLAIN)
    assert {outcome.end_ns - outcome.begin_ns for outcome in run.outcomes} == {S}
