"""Streams from a sweep's file and from the command line."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moesim.cli import main
from moesim.config import Sweep
from moesim.errors import ConfigError
from moesim.prepare import prepare
from tests.sweeps_for_tests import write_sweep

CONFIGS = Path(__file__).parents[2] / "configs"

SWEEP = """
name: load
trace: tiny.safetensors
model: ./tiny.yaml
hardware: rtx-a6000
interval: false
kv_tokens: 500
grids:
  loads: {policy: [on-demand, lru], cache: [50%, rest], arrivals_per_s: [20, 2e3], requests: 6, max_batch: 2}
  logged: {policy: lru, cache: 50%, arrivals: log.csv, warmup_requests: 1}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "log.csv").write_text("arrival_s,output_tokens\n0,4\n0.001,\n0.002,9\n")
    write_sweep(tmp_path, SWEEP)
    return tmp_path


@pytest.fixture
def moesim_command(monkeypatch, capsys):
    """Call `moesim` in this process; returns exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return call


def test_a_sweep_over_loads(folder, moesim_command):
    out = folder / "out"
    code, text, err = moesim_command("sweep", folder / "sweep.yaml", "--out", out, "--workers", 1)
    assert code == 0, err
    assert "arrivals/s" in text
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert [(row["policy"], row["slots"], row["arrivals_per_s"]) for row in rows[:6]] == [
        ("on-demand", 0, 20.0), ("on-demand", 0, 2000.0), ("lru", 12, 20.0), ("lru", 12, 2000.0),
        ("lru", 24, 20.0), ("lru", 24, 2000.0),
    ]
    slow, fast = rows[2:4]
    assert (slow["requests"], slow["max_batch"], slow["kv_tokens"]) == (6, 2, 500)
    assert slow["queueing_mean_ns"] < fast["queueing_mean_ns"]
    assert slow["output_tokens_per_s"] < fast["output_tokens_per_s"]
    assert rows[6]["arrivals"] == "log.csv"
    assert (rows[6]["requests_finished"], rows[6]["requests_measured"]) == (3, 2)
    assert "Waiting and throughput under load" in (out / "report.html").read_text()
    assert (out / "figures" / "load.svg").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arrivals_per_s: [20, 2e3], ", "", ":9: grids.loads: give arrivals_per_s or arrivals, one of them"),
        ("[20, 2e3]", "0", ":9: grids.loads.arrivals_per_s = 0: expected requests per second"),
        ("log.csv", "lost.csv", ":10: grids.logged.arrivals = lost.csv"),
        ("max_batch: 2", "max_batch: 0", ":9: grids.loads.max_batch = 0: expected a whole number, 1 or more"),
        ("kv_tokens: 500\n", "", "grids.loads: cache rest: give kv_tokens"),
        ("cache: [50%, rest]", "cache: [50%, rset]", ":9: grids.loads.cache = rset: expected a share"),
    ],
)
def test_mistakes_are_named_by_their_place(folder, old, new, message):
    assert old in SWEEP
    path = write_sweep(folder, SWEEP.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        Sweep.load(path)
    assert message in str(raised.value)


def test_the_shipped_sweep_can_be_served():
    sweep = Sweep.load(CONFIGS / "serving.yaml")
    assert len(sweep.runs) == 3 * 5 + 5
    assert all(prepare(run).serving is not None for run in sweep.runs)


def serve_command(folder, *more):
    return [
        "serve", "--trace", folder / "tiny.safetensors", "--model", folder / "tiny.yaml", "--policy", "lru",
        "--cache", "50%", *more,
    ]


def test_serve_prints_how_long_requests_wait(folder, moesim_command):
    code, out, err = moesim_command(*serve_command(folder, "--arrivals", folder / "log.csv", "--max-batch", 2))
    assert (code, err) == (0, "")
    for part in ("lru", "tiny on rtx-a6000", "3 requests (log.csv), 3 measured, at most 2 at once", "p99",
                 "time to first token", "between tokens", "end to end", "requests/s", "tokens/s", "KV cache"):
        assert part in out
    code, out, err = moesim_command(*serve_command(folder, "--arrivals", folder / "log.csv", "--json"))
    row = json.loads(out)
    assert row["requests_finished"] == 3
    assert row["run_total_ns"] == sum(
        row[f"run_{part}_ns"] for part in ("attention", "experts", "exposed_copy", "host", "idle")
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "error: give arrivals_per_s or arrivals, one of them\n"),
        (("--arrivals-per-s", "1", "--max-batch", "0"), "error: --max-batch 0: Input should be"),
        (("--arrivals-per-s", "1", "--kv-tokens", "3"), "error: request 0: 60 tokens need"),
        (("--arrivals-per-s", "1", "--cache", "much"), "error: --cache much: expected a share"),
    ],
)
def test_serve_refuses_in_one_line(folder, moesim_command, more, message):
    code, out, err = moesim_command(*serve_command(folder, *more))
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
