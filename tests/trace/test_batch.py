"""Batches made of single sequences: every token keeps its routing, and every step has the same size."""

import numpy as np
import pytest

from moesim.errors import TraceError
from moesim.events import steps
from moesim.trace import DECODE, PREFILL, Trace
from moesim.trace_batch import batch_decode, only_prefill
from moesim.trace_synthetic import SyntheticSpec, synthesize
from moesim.trace_validation import check_shapes, check_values
from tests.traces_for_tests import random_trace

ROWS = ("experts", "weights", "request", "position", "phase")
LENGTHS = (5, 8, 6, 7, 4)


@pytest.fixture(scope="module")
def trace():
    """Five requests of different lengths, two prompt tokens each, one request behind the other."""
    whole = random_trace(sum(LENGTHS) + 2 * len(LENGTHS), layers=2)
    request = np.repeat(np.arange(len(LENGTHS), dtype=np.uint32), np.array(LENGTHS) + 2)
    position = np.concatenate([np.arange(length + 2, dtype=np.uint32) for length in LENGTHS])
    phase = np.where(position < 2, PREFILL, DECODE).astype(np.uint8)
    step = (np.cumsum(position != 1) - 1).astype(np.uint32)
    return Trace(
        experts=whole.experts, weights=whole.weights, step=step, request=request, position=position, phase=phase,
        metadata=whole.metadata, predicted=whole.predicted,
    )


def row_of(trace, request, position):
    """Where a token of a request is."""
    found = np.flatnonzero((trace.request[:] == request) & (trace.position[:] == position))
    assert len(found) == 1, "a token is in a trace once"
    return found[0]


def same_routing(part, whole):
    for row in range(part.tokens):
        source = row_of(whole, part.request[row], part.position[row])
        for name in ROWS:
            np.testing.assert_array_equal(getattr(part, name)[row], getattr(whole, name)[source])
        for name, prediction in part.predicted.items():
            np.testing.assert_array_equal(prediction.ranking[row], whole.predicted[name].ranking[source])


@pytest.mark.parametrize("sequences", [1, 2, 3, 5])
def test_every_row_keeps_its_routing_and_every_step_its_size(trace, sequences):
    batched = batch_decode(trace, sequences)
    same_routing(batched, trace)
    assert set(batched.phase.tolist()) == {DECODE}
    made = list(steps(batched))
    assert {each.tokens for each in made} == {sequences}
    assert all(len(each.requests) == sequences for each in made)
    # Requests as many at a time as a step has; those left over are left out, and the shortest ends a group.
    groups = [LENGTHS[first : first + sequences] for first in range(0, len(LENGTHS), sequences)]
    assert len(made) == sum(min(group) for group in groups if len(group) == sequences)


def test_tokens_of_a_step_are_at_the_same_place_of_their_requests(trace):
    batched = batch_decode(trace, 2)
    for step in steps(batched):
        assert len(set(batched.position[step.rows].tolist())) == 1


@pytest.mark.parametrize("sequences", [0, 6])
def test_more_requests_than_there_are_cannot_be_batched(trace, sequences):
    with pytest.raises(TraceError, match=rf"batches of {sequences}: the trace decodes 5 requests$"):
        batch_decode(trace, sequences)


def test_prefill_alone_keeps_its_steps(trace):
    prefill = only_prefill(trace)
    same_routing(prefill, trace)
    assert [each.tokens for each in steps(prefill)] == [2] * len(LENGTHS)
    assert set(prefill.phase.tolist()) == {PREFILL}


def test_a_trace_without_prefill_has_none_to_take(trace):
    with pytest.raises(TraceError, match=r"no prefill to take$"):
        only_prefill(batch_decode(trace, 2))


def test_what_was_made_is_a_valid_trace_of_its_own(tmp_path):
    source, _ = synthesize(SyntheticSpec(
        layers=2, experts=8, top_k=2, overlap=0.5, busiest=0.3, decode_tokens=200, prompt_tokens=4,
        requests=3, recall=0.8,
    ))
    for number, made in enumerate((batch_decode(source, 2), only_prefill(source))):
        path = tmp_path / f"{number}.safetensors"
        made.save(path)
        again = Trace.load(path)
        check_shapes(again)
        check_values(again)
        assert again.metadata.name.startswith(source.metadata.name)
        assert {each.request for each in again.metadata.requests} == set(again.request[:].tolist())
        same_routing(again, source)
