"""What every policy must keep, whatever it decides."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.capacity import Capacity
from moesim.decide import Decider, run_without_clock
from moesim.draft.verification import verification_steps
from moesim.events import PREFILL, UseList, steps
from moesim.policies.composition import known_policies, parse
from moesim.policies.costs import Costs
from moesim.policies.registry import rules
from tests.policies.scanned import with_scores
from tests.traces_for_tests import PREDICTOR, batched_trace, random_trace

EVICTIONS = [
    *(rule for rule in rules("evict") if rule != "least-stale"), "belady[bypass]", "lcp[counts=insertion]",
    *(f"least-stale[key={key}]" for key in ("insertion", "last-access", "layer", "left-first", "cyclic")),
]
POLICIES = sorted(
    set(known_policies())
    | {f"lru[evict={evict}]" for evict in EVICTIONS}
    | {f"{policy}[evict={evict}]" for policy in ("speculate-and-execute", "prefetch-and-refetch", "resident-execute")
       for evict in EVICTIONS if evict != "belady[bypass]"}
    | {"fiddler[balance=sum]", "lru[on_miss=cpu]", "lru[on_miss=fiddler]", "cpu[evict=static[place=layers],deferred=1]"}
    | {f"speculate-and-execute[on_miss={rule}]" for rule in ("cpu", "freetoken-split")}
    | {f"moe-speq[evict={evict}]" for evict in EVICTIONS if not evict.startswith("belady")}
    | {"moe-speq[draft=self-draft[k=2,by_position=0.9/0.5]]", "moe-speq[draft=none]"}
    | {f"{route}[evict={evict}]" for route in ("cache-prior", "max-rank") for evict in ("hobbit", "random", "slru")}
    | {f"hobbit[prefetch={prefetch}]" for prefetch in rules("prefetch")}
    | {f"cache-prior[prefetch={prefetch},on_miss=skip-light[skip=0.5]]" for prefetch in rules("prefetch")}
)
COSTS = Costs(tuple(range(10, 50)), tuple([2] * 40), 13, 1e9, 2e9)
"""The CPU is faster for up to five tokens; the link has half of the host's memory."""


def scored_trace(tokens, *shape, **options):
    """With every router probability, and every channel that a shipped policy reads."""
    trace = with_scores(random_trace(tokens, *shape, **options))
    channels = dict.fromkeys((PREDICTOR, "residual"), trace.predicted[PREDICTOR])
    available = dict.fromkeys(channels, trace.metadata.predictors[PREDICTOR])
    return replace(trace, predicted=channels, metadata=trace.metadata.model_copy(update={"predictors": available}))


def decider_for(policy, trace, capacity, **options):
    composed = parse(policy)
    future = UseList(steps(trace), trace.layers, trace.n_experts) if composed.oracle else None
    largest = max(len(accesses) for step in steps(trace) for accesses in step.accesses)
    return Decider(
        composed, trace.layers, trace.n_experts * composed.route.copies, capacity, largest_event=largest, future=future,
        costs=COSTS, **options,
    )


def window_of(policy, trace):
    """The trace's steps, verified as the policy drafts them."""
    draft = parse(policy).draft
    return verification_steps(trace, trace.tokens, draft.length, draft.accepted) if draft.longest else steps(trace)


def capacities(trace, policy="lru"):
    layers, experts = trace.layers, trace.n_experts
    largest = max(len(accesses) for step in window_of(policy, trace) for accesses in step.accesses)
    yield Capacity(2 * largest, workspace=True)
    yield Capacity(trace.top_k)
    yield Capacity(experts)  # a cache of one layer
    yield Capacity(max(trace.top_k, experts // 2), per_layer=True)
    yield Capacity(layers * experts)



def check_every_event(policy, trace, capacity):
    """Slots, pins, accounts and atomicity, seen from outside: from the copies and kernels alone."""
    decider = decider_for(policy, trace, capacity)
    experts, layers = decider.experts, trace.layers
    everyone = layers * experts  # numbers from here on are experts in low precision
    # slot -> expert, as the device would see it: empty but for those who are placed before the first event
    holder = {slot: expert for pool in decider._pools for expert, slot in pool.slot_of.items()}
    assert capacity.everything or not holder or decider._evicts[0].stays
    leaves_unseen = capacity.workspace or any(evict.bypass for evict in decider._evicts)
    promised = {}  # expert -> slot, prefetched and its layer has not run yet
    for step in window_of(policy, trace):
        decider.begin(step)
        for number in range(step.drafted):
            for copy in decider.foresee(step, number).prefetch:
                assert copy.displaced not in promised, "a draft evicts what another pass has brought"
                assert copy.displaced in (None, holder.get(copy.slot))
                holder[copy.slot] = copy.expert
                promised[copy.expert] = copy.slot
        for layer in range(trace.layers):
            before = set(holder.values())
            decision = decider.decide(step, layer)
            ran = set()
            for number, wave in enumerate(decision.waves):
                for copy in wave.demand:
                    assert 0 <= copy.slot < decider.slots
                    assert copy.displaced not in wave.execute, "evicts what this wave needs"
                    assert copy.displaced in (None, holder.get(copy.slot))
                    assert copy.expert not in before or leaves_unseen, "copies what is there"
                    holder[copy.slot] = copy.expert
                    promised.pop(copy.displaced, None)  # demand goes before foresight
                for expert, slot in zip(wave.execute, wave.slots, strict=True):
                    assert holder[slot] == expert, "the kernel reads what the slot holds"
                    assert expert // experts % layers == layer
                assert not ran & set(wave.execute), "every expert runs once"
                ran |= set(wave.execute)
                if number + 1 < len(decision.waves):
                    assert len(wave.execute) <= decider.slots
            for copy in decision.prefetch:
                last = decision.waves[-1].execute if decision.waves else []
                assert copy.displaced not in last, "a prefetch evicts what the event still needs"
                if copy.displaced is None or copy.displaced // experts != layer:  # else the router has disowned it
                    assert copy.displaced not in promised, "a prefetch evicts what another has brought"
                assert copy.displaced in (None, holder.get(copy.slot))
                ahead = copy.expert // experts % layers
                assert ahead > layer or decider.policy.prefetch.of_next_step, "before its layer"
                holder[copy.slot] = copy.expert
                promised[copy.expert] = copy.slot
            assert step.phase != PREFILL or all(expert < everyone for expert in ran), "prefill runs in high precision"
            versions = ran | set(decision.stood_in) | set(decision.on_cpu)
            accesses = {expert % everyone for expert in versions}
            assert len(accesses) == len(versions), "an expert runs in one precision"
            if not decider.policy.route.looks_at_cache:
                true = decider.policy.route.accesses(step, layer)
                assert accesses == {layer * experts + e for e in true}
            elif step.tokens == 1:
                assert len(accesses) == len(step.accesses[layer])
            assert len(ran) + len(decision.stood_in) + len(decision.on_cpu) == len(accesses), "each once, or not at all"
            assert list(decision.on_cpu[len(decision.on_cpu) - len(decision.deferred) :]) == list(decision.deferred)
            assert not decision.deferred or layer + 1 < trace.layers, "nothing comes later than the last layer"
            assert decision.reads_router or not decision.on_cpu, "the CPU needs the layer's input"
            assert decision.hits + decision.misses.total() == len(accesses)
            if not leaves_unseen:
                assert decision.hits == len(versions & before), "hits are classified on the state at the start"
            fetched = sum(len(wave.demand) for wave in decision.waves)
            assert fetched + len(decision.stood_in) + len(decision.on_cpu) == decision.misses.total()
            assert step.phase != PREFILL or not decision.stood_in, "prefill executes what the router chose"
            if decision.weight_executed is not None:
                assert 0 <= decision.weight_executed <= sum(step.mass(layer).values()) * (1 + 1e-12)
            decider.finish(layer)
            promised = {expert: slot for expert, slot in promised.items() if expert // experts % layers != layer}


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(3, 8, 2), (2, 4, 4), (1, 6, 1), (4, 5, 3)]),  # one with top-k = E, one of one layer
    prompt=st.sampled_from([0, 6]),
)
def test_slots_pins_and_accounts(policy, seed, shape, prompt):
    trace = scored_trace(14, *shape, prompt=prompt, seed=seed)
    trace = replace(trace, request=(np.arange(14) // 7).astype(np.uint32))
    for capacity in capacities(trace, policy):
        if parse(policy).spec.cache == "all":
            capacity = Capacity(trace.layers * trace.n_experts, everything=True)
        check_every_event(policy, trace, capacity)


def test_guesses_for_later_layers_give_a_full_workspace_up_to_a_demand():
    trace = scored_trace(14, 3, 8, 2, seed=4096)  # hypothesis found it: nothing was free, and nothing was a victim
    check_every_event("hobbit[prefetch=static-frequency]", trace, Capacity(4, workspace=True))


def needs_no_recording(policy):
    trace = batched_trace(6)
    try:
        parse(policy).check(with_scores(trace))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("policy", list(filter(needs_no_recording, POLICIES)))
def test_several_tokens_a_step_keep_the_same_rules(policy):
    trace = with_scores(batched_trace(36, 3, 8, 2, batch=3, dropped=0.1, seed=8))
    for capacity in capacities(trace):
        if capacity.slots < 6:
            continue
        if parse(policy).spec.cache == "all":
            capacity = Capacity(trace.layers * trace.n_experts, everything=True)
        check_every_event(policy, trace, capacity)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_inputs_give_the_same_decisions(policy):
    trace = scored_trace(30, seed=5)
    capacity = Capacity(24, everything=True) if policy == "all-resident" else Capacity(6)
    first, second = (
        [repr(each) for each in run_without_clock(decider_for(policy, trace, capacity), window_of(policy, trace))]
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("policy", [p for p in POLICIES if not parse(p).oracle])
def test_no_decision_depends_on_later_tokens(policy):
    trace = scored_trace(30, seed=9)
    capacity = Capacity(24, everything=True) if policy == "all-resident" else Capacity(7)
    whole = [repr(each) for each in run_without_clock(decider_for(policy, trace, capacity), steps(trace))]
    start = trace.slice(0, 17)
    part = [repr(each) for each in run_without_clock(decider_for(policy, start, capacity), steps(start))]
    assert whole[: len(part)] == part


def with_other_later_layers(trace, row, layer):
    """The same trace up to an event; behind it the router chooses otherwise. What was predicted stays."""
    other = with_scores(random_trace(trace.tokens, trace.layers, trace.n_experts, trace.top_k, seed=77), seed=77)
    changed = {}
    for name in ("experts", "weights", "scores"):
        array = getattr(trace, name).copy()
        array[row, layer + 1 :] = getattr(other, name)[row, layer + 1 :]
        array[row + 1 :] = getattr(other, name)[row + 1 :]
        changed[name] = array
    return replace(trace, **changed)


def decisions_to(policy, trace, capacity, row, layer):
    made = [repr(each) for each in run_without_clock(decider_for(policy, trace, capacity), steps(trace))]
    return made[: row * trace.layers + layer + 1]


@pytest.mark.parametrize("policy", [p for p in POLICIES if not parse(p).reads_ahead])
def test_no_decision_depends_on_later_layers_of_the_same_token(policy):
    trace = scored_trace(20, 5, 8, 2, seed=9)
    capacity = Capacity(40, everything=True) if policy == "all-resident" else Capacity(13)
    for layer in (0, 2):
        changed = with_other_later_layers(trace, 15, layer)
        assert decisions_to(policy, trace, capacity, 15, layer) == decisions_to(policy, changed, capacity, 15, layer)


@pytest.mark.parametrize("policy", ["belady", "pre-gated", "prefetch-and-refetch[predictor=synthetic]", "hobbit"])
def test_what_is_declared_to_read_ahead_does(policy):
    assert parse(policy).reads_ahead
    trace = scored_trace(20, 5, 8, 2, seed=9)
    changed = with_other_later_layers(trace, 15, 2)
    first, second = (decisions_to(policy, each, Capacity(13), 15, 2) for each in (trace, changed))
    assert first != second


def keeps_what_it_fetches(policy):
    on_miss = parse(policy).on_miss
    return parse(policy).spec.cache == "any" and on_miss.lossless and not on_miss.uses_cpu


@pytest.mark.parametrize("policy", list(filter(keeps_what_it_fetches, POLICIES)))
def test_a_cache_of_everything_misses_only_what_it_has_never_seen(policy):
    trace = scored_trace(30, seed=3)
    decider = decider_for(policy, trace, Capacity(trace.layers * trace.n_experts))
    reasons = set()
    for decision in run_without_clock(decider, steps(trace)):
        reasons |= set(decision.misses)
    assert reasons <= {"compulsory", "prefetch"}
