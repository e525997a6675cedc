"""The event-atomic oracle against the exhaustive one, against itself, and on cases small enough to do by hand."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.event_atomic import (
    EVICTIONS,
    EXECUTIONS,
    Event,
    Victim,
    belady_with_bypass,
    cyclic_distance,
    simulate,
)
from tests.oracles.exhaustive import fewest_misses, fewest_misses_with_bypass


@st.composite
def passes(draw, *, layers=3, experts=5, steps=5, largest=3, smallest=1, predicted=False):
    """Every layer of every step, with events of differing sizes."""
    some = st.lists(st.integers(0, experts - 1), unique=True, min_size=smallest, max_size=largest).map(tuple)
    events = []
    for step in range(draw(st.integers(1, steps))):
        decode = draw(st.booleans()) or not predicted
        for layer in range(layers):
            guess = draw(some) if predicted and layer and decode else None
            events.append(Event(step, layer, draw(some), predicted=guess, decode=decode))
    return events


def as_sets(events):
    """In order of first use: the heaviest first."""
    return [[(event.layer, expert) for expert in reversed(event.experts)] for event in events]


@settings(max_examples=400)
@given(passes(layers=2, experts=4), st.integers(3, 6))
def test_belady_is_the_fewest_misses(events, slots):
    assert simulate(events, slots, "belady").misses == fewest_misses(as_sets(events), slots)


@settings(max_examples=200)
@given(passes(layers=2, experts=5, largest=4), st.integers(1, 3))
def test_belady_is_the_fewest_misses_with_waves(events, slots):
    assert simulate(events, slots, "belady").misses == fewest_misses(as_sets(events), slots)


@settings(max_examples=200)
@given(passes(layers=2, experts=4, steps=4), st.integers(1, 5))
def test_bypass_by_next_event_is_the_fewest_misses_with_bypass(events, slots):
    assert belady_with_bypass(events, slots) == fewest_misses_with_bypass(as_sets(events), slots)


@settings(max_examples=150)
@given(passes(), st.integers(3, 8))
def test_nothing_beats_belady_and_nothing_beats_bypass(events, slots):
    optimum = simulate(events, slots, "belady").misses
    assert belady_with_bypass(events, slots) <= optimum
    for eviction in EVICTIONS:
        assert simulate(events, slots, eviction).misses >= optimum


@settings(max_examples=150)
@given(passes(), st.integers(1, 8))
def test_least_stale_by_last_access_is_lru_without_prefetch(events, slots):
    assert simulate(events, slots, "least-stale[last-access]") == simulate(events, slots, "lru")


@settings(max_examples=300)
@given(passes(predicted=True), st.integers(0, 8), st.sampled_from(EVICTIONS), st.sampled_from(EXECUTIONS))
def test_books_balance(events, slots, eviction, execution):
    replay = simulate(events, slots, eviction, execution)
    capacity = slots or sum(sorted(max(len(e.experts), len(e.predicted or ())) for e in events)[-2:])
    assert replay.most_resident <= capacity
    assert all((access.reason is None) == access.hit for access in replay.accesses)
    if execution != "resident-execute":
        assert replay.misses == len(replay.copied_on_demand)
    if execution == "demand":
        assert not replay.prefetched
        assert not replay.dropped
    asked = sum(len(event.predicted or ()) for event in events)
    assert len(replay.prefetched) + len(replay.dropped) <= asked
    arrived = len(replay.copied_on_demand) + len(replay.prefetched)
    assert 0 <= arrived - len(replay.victims) <= capacity or slots == 0


@settings(max_examples=100)
@given(passes())
def test_on_demand_keeps_nothing(events):
    replay = simulate(events, 0)
    assert replay.hits == 0
    assert not replay.victims
    assert set(replay.reasons()) <= {"compulsory", "capacity"}


def one_layer(*experts_of_steps):
    return [Event(step, 0, experts) for step, experts in enumerate(experts_of_steps)]


def test_hits_are_classified_before_victims_are_chosen():
    # Access by access in two slots, 2 would push out 0 and 0 would miss; an event keeps what it needs.
    replay = simulate(one_layer((0, 1), (2, 0)), 2)
    assert [access.hit for access in replay.accesses] == [False, False, False, True]
    assert replay.victims == [Victim(1, 0, 1, "demand")]


def test_heaviest_is_touched_last():
    # 1 is heavier than 0 in the first event, so 0 is the older one
    assert simulate(one_layer((0, 1), (2,)), 2).victims == [Victim(1, 0, 0, "demand")]
    assert simulate(one_layer((1, 0), (2,)), 2).victims == [Victim(1, 0, 1, "demand")]


def test_lfu_ties_go_by_last_access():
    # all counts are 2 when 2 comes; 0 was inserted after 1 and accessed before it
    events = one_layer((1,), (0,), (0,), (1,), (2,))
    assert simulate(events, 2, "lfu").victims == [Victim(4, 0, 0, "demand")]
    assert simulate(events, 2, "fifo").victims == [Victim(4, 0, 1, "demand")]


def test_cyclic_distance():
    assert [cyclic_distance(layer, 1, 4) for layer in range(4)] == [3, 4, 1, 2]


def test_least_stale_keys_choose_different_victims():
    # Residents before (2, 1) is needed at step 1, layer 1, in order of last access:
    # (1, 0) and (2, 0) of step 0, then (0, 0) of step 1. Layer 0 has been inserted first of all.
    events = [
        Event(0, 0, (0,)),
        Event(0, 1, (0,)),
        Event(0, 2, (0,)),
        Event(1, 0, (0,)),
        Event(1, 1, (1,)),
    ]

    def victim(eviction):
        (only,) = simulate(events, 3, eviction).victims
        return only.layer

    assert victim("fifo") == 0
    assert victim("lru") == 1
    assert victim("least-stale[insertion]") == 1  # stale: layers 1 and 2; layer 0 is current
    assert victim("least-stale[last-access]") == 1
    assert victim("least-stale[layer]") == 1
    assert victim("least-stale[left-first]") == 1  # no stale expert is left of layer 1
    assert victim("least-stale[cyclic]") == 1  # layer 1 itself is a whole round away
    assert victim("belady") == 1


def test_left_first_takes_left_experts_of_the_stale():
    # Step 0 leaves (0, 1), (1, 0) and (2, 0) in order of last access; step 1 touches (0, 0)... and (2, 1) needs a slot.
    events = [
        Event(0, 1, (0,)),
        Event(0, 2, (0,)),
        Event(1, 0, (0,)),
        Event(2, 2, (1,)),
    ]
    # At step 2, layer 2: stale are (1, 0), (2, 0), (0, 0); left of layer 2 are (1, 0) and (0, 0).
    assert simulate(events, 3, "least-stale[left-first]").victims[0].layer == 1
    assert simulate(events, 3, "least-stale[layer]").victims[0].layer == 0
    # distances from layer 2 of 3: layer 2 is 3 away, layer 1 2, layer 0 1
    assert simulate(events, 3, "least-stale[cyclic]").victims[0].layer == 2


def test_a_selection_refreshes_under_least_stale_only():
    # (1, 0) is resident and selected at step 1, layer 0; layer 0's miss of the next event must take another victim.
    events = [
        Event(0, 0, (0,)),
        Event(0, 1, (0,)),
        Event(1, 0, (0,), predicted=None),
        Event(1, 1, (1,), predicted=(0,)),
    ]
    # At (1, 1): (0, 0) and (1, 0) are both current, (1, 0) refreshed later. But it is pinned, so (0, 0) goes anyway.
    assert simulate(events, 2, "least-stale[last-access]", "prefetch-and-refetch").victims == [
        Victim(3, 0, 0, "demand")
    ]
    # Unpinned after layer 1; at (2, 0) the order shows: lru holds (1, 0) for older than (0, 0), least-stale does not.
    events = [*events[:3], Event(1, 1, (2,), predicted=(0,)), Event(2, 0, (5,))]
    assert simulate(events, 3, "lru", "prefetch-and-refetch").victims == [Victim(4, 1, 0, "demand")]
    assert simulate(events, 3, "least-stale[last-access]", "prefetch-and-refetch").victims == [
        Victim(4, 0, 0, "demand")
    ]


def test_every_reason():
    events = [
        Event(0, 0, (0,)),
        Event(0, 1, (0,)),
        Event(1, 0, (0,)),  # evicted at (0, 1): the optimum must insert too, so capacity
        Event(1, 1, (0,)),
    ]
    assert [access.reason for access in simulate(events, 1).accesses] == [
        "compulsory",
        "compulsory",
        "capacity",
        "collision",  # (1, 0) pushed it out in the same step
    ]
    # Two slots, three experts in turn: lru always throws out the next one, the optimum does not.
    turn = one_layer((0,), (1,), (2,), (0,), (1,), (2,))
    assert [access.reason for access in simulate(turn, 2).accesses] == [
        *["compulsory"] * 3,
        "policy",
        "capacity",
        "policy",
    ]
    # The wrong prefetch of (1, 1) pushes (1, 0) out just before its use: a collision too, but mispredicted is first.
    wrong = [Event(0, 0, (0,)), Event(0, 1, (0,)), Event(1, 0, (1,)), Event(1, 1, (0,), predicted=(1,))]
    replay = simulate(wrong, 2, "lru", "prefetch-and-refetch")
    assert replay.victims[:2] == [Victim(2, 0, 0, "demand"), Victim(2, 1, 0, "prefetch")]
    assert [access.reason for access in replay.accesses] == [*["compulsory"] * 3, "mispredicted"]


def test_perfect_predictions_leave_only_the_first_layer_to_demand():
    pairs = [(2 * step % 6, 2 * step % 6 + 1) for step in range(4)]
    events = [
        Event(step, layer, pair, predicted=pair[::-1] if layer else None)
        for step, pair in enumerate(pairs)
        for layer in range(3)
    ]
    for execution in ("prefetch-and-refetch", "speculate-and-execute", "resident-execute"):
        replay = simulate(events, 0, execution=execution)
        assert not replay.dropped
        assert {access.layer for access in replay.accesses if not access.hit} == {0}
        assert len(replay.prefetched) == 4 * 2 * 2


def test_a_full_pool_drops_prefetches():
    events = [Event(0, 0, (0, 1)), Event(0, 1, (0, 1), predicted=(1, 0))]
    replay = simulate(events, 3, execution="speculate-and-execute")
    assert replay.prefetched == [(0, (1, 1))]
    assert replay.dropped == [(0, (1, 0))]
    assert [access.hit for access in replay.accesses] == [False, False, False, True]
    assert replay.reasons() == {"compulsory": 3}


def test_lfu_holds_an_unused_prefetch_for_the_least_used():
    # (1, 1) was prefetched in vain; (0, 0) and (1, 0) have one access each
    events = [Event(0, 0, (0,)), Event(0, 1, (0,), predicted=(1,)), Event(1, 0, (1,))]
    assert simulate(events, 3, "lfu", "prefetch-and-refetch").victims == [Victim(2, 1, 1, "demand")]


def test_demand_spares_what_is_pinned_while_it_can():
    # (1, 0) has the smallest count, but its layer runs now, so (0, 0) goes
    events = [Event(0, 0, (0,)), Event(0, 1, (1,), predicted=(0,))]
    assert simulate(events, 2, "lfu", "prefetch-and-refetch").victims == [Victim(1, 0, 0, "demand")]
    # two misses in two slots: now the pin yields
    events = [Event(0, 0, (0,)), Event(0, 1, (1, 2), predicted=(0,))]
    assert simulate(events, 2, "lfu", "prefetch-and-refetch").victims == [
        Victim(1, 0, 0, "demand"),
        Victim(1, 1, 0, "demand"),
    ]


def test_a_workspace_of_two_events_drops_what_wrong_prefetches_displace():
    # Layer 1's two guesses are wrong and stay pinned while its two true experts are fetched: none of the four slots is
    # free for layer 2.
    events = [
        Event(0, 0, (0, 1)),
        Event(0, 1, (0, 1), predicted=(2, 3)),
        Event(0, 2, (0, 1), predicted=(0, 1)),
    ]
    replay = simulate(events, 0, execution="prefetch-and-refetch")
    assert replay.prefetched == [(0, (1, 2)), (0, (1, 3))]
    assert replay.dropped == [(1, (2, 0)), (1, (2, 1))]
    assert replay.hits == 0


def test_prefill_ignores_predictions():
    events = [Event(0, 0, (0,), decode=False), Event(0, 1, (0,), predicted=(1,), decode=False)]
    for execution in EXECUTIONS:
        replay = simulate(events, 4, execution=execution)
        assert not replay.prefetched
        assert [access.expert for access in replay.accesses] == [0, 0]
        assert len(replay.copied_on_demand) == 2


def test_resident_execute_does_not_fetch_what_was_not_foreseen():
    events = [
        Event(0, 0, (0,)),
        Event(0, 1, (0, 1), predicted=(1, 2)),
        Event(1, 0, (0,)),
        Event(1, 1, (0,), predicted=(2,)),
    ]
    replay = simulate(events, 8, execution="resident-execute")
    assert replay.copied_on_demand == [(0, (0, 0))]
    assert [(a.event, a.expert, a.reason) for a in replay.accesses] == [
        (0, 0, "compulsory"),
        (1, 0, "compulsory"),
        (1, 1, None),
        (2, 0, None),
        (3, 0, "mispredicted"),
    ]


def test_waves_follow_first_use_and_flush_the_pool():
    # Four experts through two slots: 3 and 2 first (the heaviest), then 1 and 0; 0, resident before, is lost to wave 1.
    events = one_layer((0,), (0, 1, 2, 3))
    replay = simulate(events, 2)
    assert [(access.expert, access.hit) for access in replay.accesses] == [
        (0, False),
        (2, False),
        (3, False),
        (0, False),
        (1, False),
    ]
    assert replay.accesses[3].reason == "collision"
