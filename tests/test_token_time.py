"""The named sum against instants classified one nanosecond at a time."""

from hypothesis import given
from hypothesis import strategies as st

from moesim.devices.base import Event, KernelRun
from moesim.token_time import named_sum


def by_the_nanosecond(begin, end, runs, blocked, cpu_runs=()):
    """Independent and slow: ask every instant for the first class that applies."""
    sums = dict.fromkeys(("attention", "experts", "exposed_copy", "host", "idle"), 0)
    for now in range(begin, end):
        running = [run for run in runs if run.start_ns <= now < run.end_ns]
        if running:
            sums[running[0].kind] += 1
            continue
        if any(since <= now < until for since, until in cpu_runs):
            sums["experts"] += 1
            continue
        following = [run for run in runs if run.start_ns > now]
        waits = following[0].waits if following else ()
        if any(event.issued_ns <= now < event.completed_ns for event in waits if event.issued_ns is not None):
            sums["exposed_copy"] += 1
        elif any(since <= now < until for since, until in blocked):
            sums["idle"] += 1
        else:
            sums["host"] += 1
    return sums


def as_dict(time):
    return {
        "attention": time.attention_ns,
        "experts": time.experts_ns,
        "exposed_copy": time.exposed_copy_ns,
        "host": time.host_ns,
        "idle": time.idle_ns,
    }


@st.composite
def tokens(draw):
    begin = draw(st.integers(0, 5))
    runs, cursor = [], begin
    for _ in range(draw(st.integers(0, 4))):
        start = cursor + draw(st.integers(0, 12))
        end = start + draw(st.integers(1, 8))
        waits = []
        for _ in range(draw(st.integers(0, 3))):
            issued = draw(st.integers(0, start))
            # A kernel starts behind what it waited for.
            waits.append(Event(completed_ns=draw(st.integers(issued, start)), issued_ns=issued))
        if draw(st.booleans()):
            waits.append(Event(completed_ns=start))  # an event that stands for no copy
        kind = draw(st.sampled_from(["attention", "experts"]))
        runs.append(KernelRun(kind, tuple(waits), start, start, end, end - start))
        cursor = end
    end = cursor + draw(st.integers(0, 10))
    blocked, since = [], 0
    while since < end:
        since += draw(st.integers(1, 6))
        until = since + draw(st.integers(1, 9))
        blocked.append((since, until))
        since = until
    return begin, end, runs, blocked


@given(tokens())
def test_every_instant_has_the_first_class_that_applies(token):
    begin, end, runs, blocked = token
    time = named_sum(begin, end, runs, blocked)
    assert as_dict(time) == by_the_nanosecond(begin, end, runs, blocked)
    assert time.total_ns == end - begin


@given(tokens(), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=6))
def test_experts_on_the_cpu_are_the_experts_time_wherever_the_gpu_stands_still(token, cpu):
    begin, end, runs, blocked = token
    cpu_runs, now = [], begin
    for pause, length in cpu:
        cpu_runs.append((now + pause, now + pause + length))
        now += pause + length
    time = named_sum(begin, end, runs, blocked, cpu_runs)
    assert as_dict(time) == by_the_nanosecond(begin, end, runs, blocked, cpu_runs)
    assert time.total_ns == end - begin


def test_gaps_between_kernels_that_the_host_launches_too_slowly_are_host_time():
    run = KernelRun("attention", (), 0, start_ns=0, end_ns=100, busy_ns=40)
    assert as_dict(named_sum(0, 100, [run], [])) == {
        "attention": 40, "experts": 0, "exposed_copy": 0, "host": 60, "idle": 0,
    }
