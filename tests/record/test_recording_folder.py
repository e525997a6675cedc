"""Rows on disk while they come: memory does not grow with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.record.recording import Recording
from moesim.record.recording_folder import RecordingFolder
from moesim.trace import Request, Trace, TraceMetadata

LAYERS, EXPERTS, TOP_K, PIECE = 4, 32, 4, 10_000


def piece(number: int, rows: int = PIECE) -> Recording:
    """Rows that a router might have chosen, for a request of their own."""
    random = np.random.default_rng(number)
    ids = random.random((rows, LAYERS, EXPERTS)).argpartition(TOP_K)[..., :TOP_K].astype(np.uint8)
    return Recording(
        experts=ids,
        weights=np.full(ids.shape, 0.25, np.float16),
        step=(number * rows + np.arange(rows)).astype(np.uint32),
        request=np.full(rows, number, np.uint32),
        position=np.arange(rows, dtype=np.uint32),
        phase=np.ones(rows, np.uint8),
        scores=None,
        predicted={},
    )


def metadata(requests: list[Request]) -> TraceMetadata:
    return TraceMetadata(
        name="rows", model="none", layers=LAYERS, experts=EXPERTS, top_k=TOP_K, moe_layers=list(range(LAYERS)),
        dataset="", tokenizer="", decoding="greedy", recorder="", recorder_version="", licence="", source="",
        requests=requests,
    )


def write(out: Path, pieces: int) -> None:
    folder = RecordingFolder(out, {"what": "rows"})
    rows = piece(0)
    for number in range(pieces):
        rows.step[:] = number * PIECE + np.arange(PIECE)
        rows.request[:] = number
        folder.append(rows)
        folder.commit([Request(request=number, kind="text")])
    folder.finish(metadata(folder.requests))


def test_what_was_appended_is_what_the_trace_holds(tmp_path: Path) -> None:
    out = tmp_path / "rows.safetensors"
    folder = RecordingFolder(out, {"what": "rows"})
    for number in range(3):
        folder.append(piece(number, 50))
        folder.commit([Request(request=number, kind="text")])
    folder.append(piece(3, 50))  # not committed
    folder.close()
    folder = RecordingFolder(out, {"what": "rows"})
    assert (folder.rows, folder.steps, len(folder.requests)) == (150, 150, 3)
    folder.append(piece(3, 50))
    folder.commit([Request(request=3, kind="text")])
    folder.finish(metadata(folder.requests))
    trace = Trace.load(out)
    trace.validate()
    for name, array in trace.arrays().items():
        expected = np.concatenate([piece(number, 50).arrays()[name] for number in range(4)])
        np.testing.assert_array_equal(array, expected)


def test_two_processes_do_not_record_the_same_file(tmp_path: Path) -> None:
    out = tmp_path / "rows.safetensors"
    first = RecordingFolder(out, {})
    with pytest.raises(InputError, match=r"rows\.safetensors: another process is recording it"):
        RecordingFolder(out, {})
    first.close()
    RecordingFolder(out, {}).close()


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak_bytes(pieces: int) -> int:
        run = subprocess.run(
            [sys.executable, "-m", "tests.record.test_recording_folder", str(tmp_path / "t.safetensors"), str(pieces)],
            check=True, capture_output=True, text=True,
        )
        return int(run.stdout)

    few, many = peak_bytes(5), peak_bytes(150)
    size = (tmp_path / "t.safetensors").stat().st_size
    assert size > 90e6
    assert many - few < size / 6


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
    # Not getrusage: its peak is handed down from the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    print(1024 * int(next(line.split()[1] for line in status if line.startswith("VmHWM"))))
