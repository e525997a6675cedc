"""A trace larger than the memory that may be used: the peak resident size of a process of its own.

It is read from /proc, because getrusage's figure starts at that of the process that started the process.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moesim.trace_file import write_file
from moesim.trace_metadata import TraceMetadata

TOKENS, LAYERS, EXPERTS, TOP_K = 28_000, 48, 128, 8
LIMIT_BYTES = 110_000_000


@pytest.fixture(scope="module")
def large_trace(tmp_path_factory):
    """A valid trace of some 400 MB, written from one small part again and again."""
    random = np.random.default_rng(0)
    rows = 1000
    experts = random.random((rows, LAYERS, EXPERTS)).argsort(-1)[..., :TOP_K].astype(np.uint8)
    weights = -np.sort(-random.random((rows, LAYERS, TOP_K)), -1).astype(np.float16)
    row = np.arange(TOKENS, dtype=np.uint32)
    parts = {
        "experts": [experts] * (TOKENS // rows), "weights": [weights] * (TOKENS // rows),
        "scores": [random.random((rows, LAYERS, EXPERTS)).astype(np.float16)] * (TOKENS // rows),
        "predicted.x": [experts_with_first_layer_absent(experts)] * (TOKENS // rows),
        "predicted.x.scores": [weights_with_first_layer_zero(weights)] * (TOKENS // rows),
        "step": [row], "request": [np.zeros(TOKENS, np.uint32)], "position": [row],
        "phase": [np.ones(TOKENS, np.uint8)],
    }
    metadata = TraceMetadata(
        name="large", model="none", layers=LAYERS, experts=EXPERTS, top_k=TOP_K, moe_layers=list(range(LAYERS)),
        predictors={"x": {"layer_offset": 1, "point": "none", "description": "none"}}, dataset="none",
        tokenizer="none", decoding="unknown", recorder="test", recorder_version="0", licence="none", source="none",
    )
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    write_file(path, metadata.to_json(), parts)
    assert path.stat().st_size > 3 * LIMIT_BYTES
    return path


def experts_with_first_layer_absent(experts):
    ranking = experts.copy()
    ranking[:, 0] = 255
    return ranking


def weights_with_first_layer_zero(weights):
    scores = weights.copy()
    scores[:, 0] = 0
    return scores


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "work",
    [
        "trace.validate()",
        "trace.content_hash()",
        "trace.save(Path(path + '.copy'))",
        "save_concatenated([trace.slice(0, 9000), trace.slice(9000, 28000)], Path(path + '.copy'), renumber=False)",
        "summarize(trace, 2000)",
        "[trace.arrays()[name][rows].sum() for rows in trace.chunks() for name in trace.arrays()]",
        "[step.predicted('x', 1) for step in steps(trace)]",
    ],
)
def test_work_on_a_large_trace_stays_small(large_trace, work):
    code = f"""
from pathlib import Path
from moesim.events import steps
from moesim.trace import Trace, save_concatenated
from moesim.trace_summary import summarize
path = {str(large_trace)!r}
trace = Trace.load(Path(path))
{work}
Path(path + '.copy').unlink(missing_ok=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak_bytes = int(done.stdout)
    assert peak_bytes < LIMIT_BYTES, f"{peak_bytes / 1e6:.0f} MB resident for a trace of 400 MB"
