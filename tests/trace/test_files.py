"""Files that are no traces are refused in one line, and a trace is written whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moesim.atomic_write import atomic_write
from moesim.errors import InputError, TraceError
from moesim.trace import Trace
from tests.trace.examples import example


@pytest.fixture
def contents(tmp_path):
    example(predictors={"residual": (1, 4, True)}).save(tmp_path / "good.safetensors")
    return (tmp_path / "good.safetensors").read_bytes()


def refusal(path):
    with pytest.raises(TraceError) as found:
        Trace.load(path)
    message = str(found.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def refusal_of(tmp_path, data):
    (tmp_path / "bad.safetensors").write_bytes(data)
    return refusal(tmp_path / "bad.safetensors")


def with_header(contents, change):
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + contents[8 + length :]


def test_every_truncation_is_refused(tmp_path, contents):
    for length in [*range(0, len(contents), 97), len(contents) - 1]:
        refusal_of(tmp_path, contents[:length])
    assert refusal_of(tmp_path, contents[:-1]).startswith("truncated or damaged")
    assert refusal_of(tmp_path, b"") == "the file is empty"


@given(place=st.integers(0, 2**16), value=st.integers(0, 255))
@settings(max_examples=300)
def test_a_changed_byte_is_refused_in_one_line_or_harmless(place, value):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        example(predictors={"residual": (1, 4, True)}).save(path)
        data = bytearray(path.read_bytes())
        data[place % len(data)] = value
        path.write_bytes(data)
        message = ""
        try:
            Trace.load(path).validate()
        except TraceError as error:
            message = str(error)
        assert "\n" not in message


def test_foreign_files_are_refused(tmp_path, contents):
    for data in (b"step,request\n" * 40, b"PK\x03\x04" + bytes(100), bytes(64), b"\xff" * 64, contents + b"more"):
        assert "safetensors" in refusal_of(tmp_path, data) or "truncated or damaged" in refusal_of(tmp_path, data)
    save_file({"experts": np.zeros((4, 2, 2), np.uint8)}, tmp_path / "other.safetensors")
    assert refusal(tmp_path / "other.safetensors").endswith("its metadata has no key 'moesim'")


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path, contents):
    def grow(header):
        header["experts"]["shape"][0] = 2**40

    def grow_consistently(header):
        last = max((entry for name, entry in header.items() if name != "__metadata__"),
                   key=lambda entry: entry["data_offsets"][1])
        last["shape"][0] = 2**40
        size = int(np.prod(last["shape"])) * {"U8": 1, "U16": 2, "F16": 2, "U32": 4}[last["dtype"]]
        last["data_offsets"][1] = last["data_offsets"][0] + size

    refusal_of(tmp_path, with_header(contents, grow))
    assert refusal_of(tmp_path, with_header(contents, grow_consistently)).startswith("truncated or damaged")
    refusal_of(tmp_path, (2**62).to_bytes(8, "little") + contents[8:])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("not json", "the metadata is not a JSON object"),
        ("[1]", "the metadata is not a JSON object: it is a list"),
        ("[" * 100_000, "the metadata is not a JSON object: nested too deeply"),
        ("{}", "metadata.format = None"),
        ('{"format": "moesim-trace/1"}', "metadata.name is missing"),
    ],
)
def test_broken_metadata_are_refused(tmp_path, contents, metadata, message):
    def change(header):
        header["__metadata__"]["moesim"] = metadata

    assert refusal_of(tmp_path, with_header(contents, change)).startswith(message)


def test_missing_unknown_and_mistyped_arrays_are_refused(tmp_path, contents):
    def rename(old, new):
        def change(header):
            header[new] = header.pop(old)

        return with_header(contents, change)

    assert refusal_of(tmp_path, rename("phase", "phases")) == "array 'phase' is missing: every trace has it"
    assert refusal_of(tmp_path, rename("weights", "weight")) == "array 'weight' is not part of the format"
    assert "'predicted.other.scores'" in refusal_of(
        tmp_path, rename("predicted.residual.scores", "predicted.other.scores")
    )

    def retype(header):
        header["weights"]["dtype"] = "BF16"

    assert refusal_of(tmp_path, with_header(contents, retype)).startswith("weights has type BF16: a trace holds U8")


def test_what_is_no_plain_file_is_refused(tmp_path):
    assert refusal(tmp_path) == "not a plain file: a trace is memory-mapped"
    assert refusal(tmp_path / "none") == "cannot be read: No such file or directory"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "not a plain file: a trace is memory-mapped"


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"none/a\.safetensors: cannot be written: No such file or directory"):
        example().save(tmp_path / "none" / "a.safetensors")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    """The limit on file sizes of a process fails writes as a full disk does."""
    path = tmp_path / "a.safetensors"
    example().save(path)
    before = path.read_bytes()
    code = f"""
import resource
from pathlib import Path
from moesim.errors import TraceError
from tests.trace.examples import example
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    example(tokens=5000).save(Path({str(path)!r}))
except TraceError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith(f"{path}: cannot be written: ")
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write():
        with atomic_write(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_writer_passes_unchanged(tmp_path):
    with pytest.raises(InputError, match=r"^as it is$"), atomic_write(tmp_path / "a"):
        raise InputError("as it is")
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_usual_permissions(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"whole")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert (tmp_path / "a").read_bytes() == b"whole"


