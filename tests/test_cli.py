"""The command line as people use it: what it prints, what it writes, and one line for whatever is wrong."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import moesim
from moesim.catalogue import names
from moesim.cli import main
from tests.sweeps_for_tests import RUNS, write_sweep


@pytest.fixture
def moesim_command(monkeypatch, capsys):
    """Call `moesim` in this process; returns exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def tiny(tmp_path):
    """A folder with a small sweep, its trace and its model."""
    write_sweep(tmp_path)
    return tmp_path


def tiny_run(tiny, *more):
    """`moesim run` on the small trace."""
    return ["run", "--trace", tiny / "tiny.safetensors", "--model", tiny / "tiny.yaml", "--warmup", "10", *more]


def test_run_prints_the_named_sum(moesim_command, tiny):
    code, out, err = moesim_command(*tiny_run(tiny, "--policy", "least-stale[key=cyclic]", "--cache", "50%"))
    assert (code, err) == (0, "")
    for part in ("least-stale[key=cyclic]", "tiny on rtx-a6000", "cache 50.0%", "TPOT", "p99", "attention", "experts",
                 "exposed copy", "host", "idle", "link floor", "hits"):
        assert part in out
    assert "\x1b" not in out  # colours are for terminals
    figures = {
        name.strip(): float(line.split(" ms")[0].split()[-1])
        for line in out.splitlines() if " ms  " in line
        for name in ("attention", "experts", "exposed copy", "host", "idle") if line.strip().startswith(name)
    }
    total = float(out.partition("TPOT ")[2].partition(" ms")[0])
    assert sum(figures.values()) == pytest.approx(total, abs=0.03)  # each is rounded to 0.01 ms


def test_a_bound_a_lossy_and_an_infeasible_run_are_labelled(moesim_command, tiny):
    assert "(bound)" in moesim_command(*tiny_run(tiny, "--policy", "belady", "--cache", "50%"))[1]
    lossy = moesim_command(*tiny_run(tiny, "--policy", "speculate-and-execute"))[1]
    assert "(open loop, lossy)" in lossy
    assert "of the router's weight" in lossy
    small = moesim_command(*tiny_run(tiny, "--policy", "on-demand", "--set", "memory_bytes=1e6"))[1]
    assert "does not fit into the GPU's memory" in small


def test_run_as_json_is_the_row_of_the_sweep(moesim_command, tiny):
    assert moesim_command("sweep", tiny / "sweep.yaml", "--out", tiny / "out", "--workers", "1", "-q") == (0, "", "")
    table = pq.read_table(tiny / "out" / "results.parquet").to_pylist()
    (row,) = [row for row in table if row["policy"] == "fifo" and row["cache_fraction"] == 0.75]
    code, out, err = moesim_command(*tiny_run(
        tiny, "--policy", "fifo", "--cache", "75%", "--context", "128", "--device", "simulated", "--json"
    ))
    assert (code, err) == (0, "")
    printed = json.loads(out)
    of_the_sweep = {"grid", "configuration", "run_hash"}
    assert list(printed) == list(row)
    assert {k: v for k, v in printed.items() if k not in of_the_sweep} == {
        k: v for k, v in row.items() if k not in of_the_sweep
    }


def test_axes_as_flags_reach_the_run(moesim_command, tiny):
    row = json.loads(moesim_command(*tiny_run(
        tiny, "--policy", "lru", "--cache", "0.5", "--per-layer", "--engine", "graph", "--hardware", "h100",
        "--measured", "7", "--set", "hardware.link_bytes_per_s=32e9", "--set", "read_back_ns=5", "--json",
    ))[1])
    assert (row["cache_fraction"], row["per_layer"], row["engine"], row["hardware"]) == (0.5, True, "graph", "h100")
    assert (row["tokens_measured"], row["link_bytes_per_s"]) == (7, 32_000_000_000)
    assert json.loads(row["hardware_overrides"]) == {"link_bytes_per_s": 32e9, "read_back_ns": 5}


def test_a_timeline_for_perfetto(moesim_command, tiny):
    code, _, _ = moesim_command(*tiny_run(tiny, "--policy", "lru", "--timeline", tiny / "t.json"))
    assert code == 0
    events = json.loads((tiny / "t.json").read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"host", "compute", "link"} <= tracks
    copy = next(event for event in events if event["ph"] == "X" and event["args"]["expert"] >= 0)
    assert copy["name"].endswith(f"L{copy['args']['layer']} E{copy['args']['expert']}")


def test_a_sweep_ends_with_its_report_and_the_best_policy(moesim_command, tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    code, out, err = moesim_command("sweep", "sweep.yaml", "--workers", "1")
    assert code == 0
    assert f"{RUNS} runs in" in out
    assert "report: runs/tiny/report.html" in out
    assert (tiny / "runs" / "tiny" / "report.html").stat().st_size > 10_000
    assert err.splitlines()[-1] == f"{RUNS} of {RUNS} runs"
    table = pq.read_table(tiny / "runs" / "tiny" / "results.parquet").to_pylist()
    ranked = [row for row in table if row["lossless"] and not row["bound"] and row["feasible"]]
    best = min((row for row in ranked if row["grid"] == "policies"), key=lambda row: row["tpot_mean_ns"])
    shown = next(line for line in out.splitlines() if line.startswith("policies"))
    assert best["policy"] in shown
    assert f"{best['tpot_mean_ns'] / 1e6:.2f} ms" in shown
    (tiny / "runs" / "tiny" / "report.html").unlink()
    assert moesim_command("report", "runs/tiny")[0] == 0
    assert (tiny / "runs" / "tiny" / "report.html").exists()


@pytest.mark.parametrize("kind", ["policies", "models", "hardware"])
def test_lists_of_what_is_known(moesim_command, kind):
    code, out, _ = moesim_command(kind, "--json")
    assert code == 0
    assert [each["name"] for each in json.loads(out)] == names(kind)
    table = moesim_command(kind)[1]
    assert all(name in table for name in names(kind))


def test_policies_say_what_they_cost(moesim_command):
    listed = {each["name"]: each for each in json.loads(moesim_command("policies", "--json")[1])}
    for lossy in ("speculate-and-execute", "resident-execute"):
        assert not listed[lossy]["lossless"]
    for bound in ("belady", "all-resident"):
        assert listed[bound]["bound"]
    assert (listed["lru"]["lossless"], listed["lru"]["bound"]) == (True, False)


def test_version(moesim_command):
    assert moesim_command("--version") == (0, f"moesim {moesim.__version__}\n", "")


@pytest.mark.parametrize("command", ["sweep", "run", "report", "policies", "models", "hardware"])
def test_help_shows_examples(moesim_command, command):
    code, out, err = moesim_command(command, "--help")
    assert (code, err) == (0, "")
    assert f"moesim {command}" in out.partition("Examples:")[2]


def test_examples_keep_their_brackets(moesim_command):
    assert "least-stale[key=cyclic]" in moesim_command("run", "--help")[1]


def test_no_command_is_a_question_for_help(moesim_command):
    code, out, err = moesim_command()
    assert code == 2
    assert "sweep" in out + err


BAD = {
    "unknown command": (["swep"], "swep"),
    "unknown flag": (["run", "--polcy", "lru"], "--polcy"),
    "no policy": (["run"], "--policy"),
    "unknown policy": (["run", "--policy", "lruu"], "unknown policy 'lruu': did you mean lru"),
    "unknown parameter": (["run", "--policy", "least-stale[ky=layer]"], "unknown parameter 'ky'"),
    "unknown model": (["run", "--policy", "lru", "--model", "qwen4"], "unknown model 'qwen4'"),
    "unknown hardware": (["run", "--policy", "lru", "--hardware", "a6001"], "unknown hardware 'a6001'"),
    "unknown engine": (["run", "--policy", "lru", "--engine", "yal"], "unknown engine 'yal': did you mean yalis"),
    "no trace": (["run", "--policy", "lru", "--trace", "none.safetensors"], "none.safetensors"),
    "share over 1": (["run", "--policy", "lru", "--cache", "101%"], "--cache 101%: expected 0% to 100%"),
    "too few slots": (["run", "--policy", "lru", "--cache", "5%"], "is 1 slots, fewer than its top-k 2"),
    "no context": (["run", "--policy", "lru", "--context", "0"], "--context 0"),
    "negative warm-up": (["run", "--policy", "lru", "--warmup", "-3"], "--warmup -3"),
    "nothing measured": (["run", "--policy", "lru", "--measured", "0"], "--measured 0"),
    "context in words": (["run", "--policy", "lru", "--context", "long"], "--context"),
    "negative bandwidth": (["run", "--policy", "lru", "--set", "link_bytes_per_s=-1"], "link_bytes_per_s = -1: must"),
    "figure in words": (["run", "--policy", "lru", "--set", "link_bytes_per_s=fast"], "--set link_bytes_per_s=fast"),
    "unknown figure": (["run", "--policy", "lru", "--set", "bandwidth=5"], "hardware.bandwidth: unknown figure"),
    "timeline into nothing": (["run", "--policy", "lru", "--timeline", "no/folder/t.json"], "no/folder/t.json"),
    "no sweep": (["sweep", "none.yaml"], "none.yaml: No such file"),
    "context of ages": (["run", "--policy", "lru", "--context", "9" * 21], f"--context {'9' * 21}"),
    "optional number in words": (["run", "--policy", "moe-infinity[count=few]"], "count=few: expected a int"),
    "half an expert": (["run", "--policy", "prefetch-and-refetch[count=1.5]"], "count=1.5: expected a int"),
    "share of everything": (["run", "--policy", "lru[budget=per-layer[shares=1e308/1e308/1]]"], "shares=1e308"),
    "servers of halves": (
        ["run", "--policy", "lru[budget=split[share=0.5]]", "--cache", "75%", "--engine", "batch-servers"], "servers",
    ),
    "requests in ages": (
        ["serve", "--trace", "tiny.safetensors", "--model", "./tiny.yaml", "--policy", "lru", "--cache", "75%",
         "--arrivals-per-s", "1e-300"],
        "arrivals_per_s = 1e-300: ",
    ),
    "no workers": (["sweep", "sweep.yaml", "--workers", "0"], "--workers"),
    "no results": (["report", "nowhere"], "nowhere"),
    "results of nothing": (["report", "."], "results.parquet"),
    "no file": (["trace", "info", "none.safetensors"], "none.safetensors"),
    "no trace file": (["trace", "validate", "tiny.yaml"], "tiny.yaml: not a safetensors file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_and_exit_code_2(moesim_command, tiny, monkeypatch, case):
    arguments, expected = BAD[case]
    monkeypatch.chdir(tiny)
    if arguments[0] == "run":
        given = [flag for flag in ("--trace", "--model") if flag in arguments]
        defaults = {"--trace": "tiny.safetensors", "--model": "./tiny.yaml"}
        arguments = [*arguments, *(part for flag in defaults if flag not in given for part in (flag, defaults[flag]))]
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    code, out, err = moesim_command(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_a_truncated_trace_is_one_line(moesim_command, tiny):
    whole = (tiny / "tiny.safetensors").read_bytes()
    (tiny / "tiny.safetensors").write_bytes(whole[: len(whole) // 2])
    code, out, err = moesim_command(*tiny_run(tiny, "--policy", "lru"))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tiny / 'tiny.safetensors'}: ")
    assert err.count("\n") == 1


def test_help_imports_little():
    """So that help is quick: nothing that simulates, draws or computes tables."""
    script = "import sys, moesim.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"simpy", "pyarrow", "matplotlib", "jinja2", "torch", "transformers"} & set(done.stdout.split())
