"""What is saved is what is loaded, to the byte, and the safetensors library reads it too."""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from moesim.trace import Trace, id_dtype
from tests.trace.examples import assert_equal, changed, example, traces


@given(traces())
@settings(max_examples=60)
def test_a_saved_trace_loads_equal(trace):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        trace.save(path)
        loaded = Trace.load(path)
        loaded.validate()
        assert_equal(loaded, trace)
        assert loaded.content_hash() == trace.content_hash()
        assert sorted(each.name for each in Path(folder).iterdir()) == ["a.safetensors"]


def full_example():
    return example(scores=True, predictors={"residual": (1, 4, True), "router-input": (2, 3, False)}, dropped=0.2)


def test_the_safetensors_library_reads_the_same(tmp_path):
    trace = full_example()
    trace.save(tmp_path / "a.safetensors")
    held = load_file(tmp_path / "a.safetensors")
    assert held.keys() == trace.arrays().keys()
    for name, array in trace.arrays().items():
        np.testing.assert_array_equal(held[name], array)
        assert held[name].dtype == array.dtype
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["moesim"]) == trace.metadata.model_dump(mode="json")


def test_a_file_that_the_library_wrote_loads(tmp_path):
    trace = full_example()
    arrays = {name: np.ascontiguousarray(array) for name, array in trace.arrays().items()}
    save_file(arrays, tmp_path / "a.safetensors", {"moesim": trace.metadata.to_json()})
    assert_equal(Trace.load(tmp_path / "a.safetensors"), trace)


def test_the_same_trace_gives_the_same_bytes(tmp_path):
    full_example().save(tmp_path / "a.safetensors")
    Trace.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_trace_can_be_saved_over_the_file_that_it_is_mapped_from(tmp_path):
    full_example().save(tmp_path / "a.safetensors")
    loaded = Trace.load(tmp_path / "a.safetensors")
    loaded.slice(2, 5).save(tmp_path / "a.safetensors")
    assert_equal(loaded, full_example())
    assert Trace.load(tmp_path / "a.safetensors").tokens == 3


def test_loaded_arrays_are_views_of_the_file_and_cannot_be_written(tmp_path):
    full_example().save(tmp_path / "a.safetensors")
    loaded = Trace.load(tmp_path / "a.safetensors")
    for array in loaded.arrays().values():
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_arrays_are_aligned_in_the_file(tmp_path):
    example(tokens=13, layers=1, top_k=2).save(tmp_path / "a.safetensors")  # odd numbers of bytes
    for name, array in Trace.load(tmp_path / "a.safetensors").arrays().items():
        assert array.flags.aligned, name


def test_released_pages_read_the_same_again(tmp_path):
    full_example().save(tmp_path / "a.safetensors")
    loaded = Trace.load(tmp_path / "a.safetensors")
    before = loaded.experts.copy()
    loaded.release()
    np.testing.assert_array_equal(loaded.experts, before)


def test_the_hash_is_that_of_metadata_and_arrays_in_the_order_of_their_names():
    trace = full_example()
    text = json.dumps(trace.metadata.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    expected = hashlib.sha256(text.encode())
    for name in sorted(trace.arrays()):
        array = trace.arrays()[name]
        expected.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    assert trace.content_hash() == expected.hexdigest()


@pytest.mark.parametrize("name", sorted(full_example().arrays()))
def test_any_change_of_a_value_changes_the_hash(name):
    trace = full_example()
    index = tuple(size - 1 for size in trace.arrays()[name].shape)
    other = changed(trace, name, index, 0 if trace.arrays()[name][index] else 1)
    assert other.content_hash() != trace.content_hash()


@pytest.mark.parametrize(("experts", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16")])
def test_ids_leave_room_for_the_absent_value(experts, dtype):
    assert np.dtype(id_dtype(experts)).name == dtype


def test_properties():
    trace = example(tokens=5, layers=3, experts=300, top_k=2)
    assert (trace.tokens, trace.layers, trace.n_experts, trace.top_k, trace.absent) == (5, 3, 300, 2, 65535)
    assert example().absent == 255
