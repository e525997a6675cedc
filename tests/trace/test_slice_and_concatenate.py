"""Slices and concatenations obey the laws of sequences."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import TraceError
from moesim.trace import Request, Trace, concatenate, save_concatenated
from tests.trace.examples import assert_equal, example, metadata, traces


@given(st.data(), traces())
@settings(max_examples=60)
def test_a_slice_holds_exactly_its_rows(data, trace):
    start = data.draw(st.integers(0, trace.tokens - 1))
    stop = data.draw(st.integers(start + 1, trace.tokens))
    part = trace.slice(start, stop)
    part.validate()
    for name, array in part.arrays().items():
        np.testing.assert_array_equal(array, trace.arrays()[name][start:stop])
    assert [each.request for each in part.metadata.requests] == sorted(set(trace.request[start:stop].tolist()))


@given(st.data(), traces())
@settings(max_examples=60)
def test_the_pieces_of_a_trace_join_to_the_trace(data, trace):
    cuts = sorted(data.draw(st.sets(st.integers(1, trace.tokens - 1), max_size=3))) if trace.tokens > 1 else []
    pieces = [trace.slice(a, b) for a, b in zip([0, *cuts], [*cuts, trace.tokens], strict=True)]
    assert_equal(concatenate(pieces, renumber=False), trace)


@given(st.data(), traces(), st.integers(1, 3))
@settings(max_examples=60)
def test_joined_recordings_keep_their_contents_and_their_order(data, trace, copies):
    joined = concatenate([trace] * copies)
    joined.validate()
    assert len(joined.metadata.requests) == copies * len(trace.metadata.requests)
    for copy in range(copies):
        part = joined.slice(copy * trace.tokens, (copy + 1) * trace.tokens)
        for name, array in part.arrays().items():
            original = trace.arrays()[name]
            if name in ("step", "request"):  # counted on: the same differences from the first
                array, original = array - array[0], original - original[0]
            np.testing.assert_array_equal(array, original)
    # recordings never share a step or a request
    for name in ("step", "request"):
        groups = [set(joined.arrays()[name][i * trace.tokens : (i + 1) * trace.tokens].tolist()) for i in range(copies)]
        assert sum(map(len, groups)) == len(set.union(*groups))


@given(traces(max_tokens=6))
@settings(max_examples=30)
def test_joining_is_associative(trace):
    left = concatenate([concatenate([trace, trace]), trace])
    right = concatenate([trace, concatenate([trace, trace])])
    assert_equal(left, right)
    assert_equal(left, concatenate([trace, trace, trace]))


@given(traces())
@settings(max_examples=20)
def test_joining_on_disk_equals_joining_in_memory(trace):
    with TemporaryDirectory() as folder:
        trace.save(Path(folder) / "a")
        loaded = Trace.load(Path(folder) / "a")
        save_concatenated([loaded, trace], Path(folder) / "b")
        assert_equal(Trace.load(Path(folder) / "b"), concatenate([trace, trace]))


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 5), (6, 5), (-1, 3), (0, 13), (12, 13)])
def test_an_empty_or_outside_slice_is_refused(start, stop):
    with pytest.raises(TraceError, match=f"rows {start} to {stop}: the trace has rows 0 to 12"):
        example().slice(start, stop)


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        (example(weights=False), "arrays differ"),
        (example(experts=9), "metadata.experts differ: 8 and 9"),
        (example(layers=2), "metadata.layers differ: 3 and 2"),
        (example(top_k=1), "metadata.top_k differ: 2 and 1"),
        (replace(example(), metadata=metadata(model="other", moe_layers=[0, 1, 2])), "metadata.model differ"),
    ],
)
def test_traces_of_different_shapes_are_not_joined(other, rule):
    with pytest.raises(TraceError, match=rule) as refusal:
        concatenate([example(), other])
    assert "\n" not in str(refusal.value)


def test_predictors_of_different_depth_are_not_joined():
    one, two = (example(predictors={"residual": (1, ranked, False)}) for ranked in (3, 4))
    with pytest.raises(TraceError, match=r"predicted\.residual rows differ: \[3, 3\] and \[3, 4\]"):
        concatenate([one, two])


def test_nothing_is_not_joined():
    with pytest.raises(TraceError, match="nothing to concatenate"):
        concatenate([])


def relabelled(**update):
    return replace(example(), metadata=example().metadata.model_copy(update=update))


def test_what_the_parts_say_differently_is_kept_side_by_side():
    joined = concatenate([
        relabelled(source="here", decoding="greedy", provenance={"a": 1}),
        relabelled(source="there", decoding="sampled", name="second"),
        relabelled(source="here"),
    ]).metadata
    assert joined.source == "here; there"
    assert joined.decoding == "unknown"
    assert joined.name == "example; second"
    assert joined.licence == "CC0-1.0"
    assert [part["name"] for part in joined.provenance["concatenated"]] == ["example", "second", "example"]


def test_a_synthetic_part_makes_the_whole_synthetic():
    joined = concatenate([example(), relabelled(synthetic=True, name="synthetic-x")])
    assert joined.metadata.synthetic
    assert joined.metadata.name.startswith("synthetic")


def test_pieces_that_contradict_each_other_are_refused():
    other = relabelled(requests=[Request(request=0, kind="poem")])
    with pytest.raises(TraceError, match="request 0 is 'poem' here and 'kind-0' in an earlier part"):
        concatenate([example(), other], renumber=False)
