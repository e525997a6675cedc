"""Sweeps on a Dask cluster: a real scheduler and real workers here, one killed, one of other code, none in reach."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from moesim.config import Sweep
from moesim.errors import InputError
from moesim.sweep import checked
from moesim.sweep_tasks import Group
from tests.cluster_for_tests import ROOT, cluster
from tests.sweeps_for_tests import DIES, LETHAL_SWEEP, RUNS, write_sweep
from tests.test_sweep import disturbed, interrupt, kept, some_are_kept, start, swept, wait_for

pytest.importorskip("distributed", reason="the extra moesim[cluster] is not installed")
from moesim.cluster_task import answer, answers_in, as_text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep that takes long enough to be disturbed, its results and timelines as one process makes them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_sweep(folder, tokens=400)
    swept(config, folder / "out")
    return config, made(folder / "out")


def made(out):
    return {
        path.relative_to(out): path.read_bytes()
        for path in (out / "results.parquet", *sorted((out / "timelines").iterdir()))
    }


def ended(process, seconds=120):
    """The exit code, and the lines of the error output that are not progress."""
    stdout, stderr = process.communicate(timeout=seconds)
    return process.returncode, [line for line in stderr.splitlines() if not line.endswith("runs")], stdout


def test_a_killed_worker_an_interruption_and_a_resumption_change_no_byte(undisturbed, tmp_path):
    config, expected = undisturbed
    with cluster(tmp_path) as team:
        team.scheduler()
        lost = team.worker("one")
        other = team.worker("two")

        out = tmp_path / "killed worker"
        other.send_signal(signal.SIGSTOP)  # what it is given stays undone, so that something is left to do
        process = start(config, out, "--cluster", team.address)
        wait_for(lambda: some_are_kept(out), process)
        lost.kill()
        lost.wait()
        team.processes.remove(lost)
        assert len(kept(out)) < RUNS
        other.send_signal(signal.SIGCONT)
        assert ended(process)[:2] == (0, [])
        assert made(out) == expected
        assert len(set(kept(out))) == len(kept(out)) == RUNS

        def stop_and_interrupt(process):
            other.send_signal(signal.SIGSTOP)  # or it might be through before the interruption
            interrupt(process)

        def go_on():
            other.send_signal(signal.SIGCONT)

        out, status, _, told = disturbed(
            config, tmp_path, stop_and_interrupt, "--cluster", team.address, ready=go_on
        )
        go_on()
        lines = [line for line in told.splitlines() if not line.endswith("runs")]
        assert (status, lines) == (130, ["error: interrupted; the same command continues where it was"])
        before = kept(out)
        assert 3 <= len(before) < RUNS
        process = start(config, out, "--cluster", team.address)  # the worker may still be at what was asked before
        assert ended(process)[:2] == (0, [])
        assert kept(out)[: len(before)] == before
        assert len(kept(out)) == RUNS
        assert made(out) == expected


def test_a_run_that_kills_its_workers_is_reported_and_the_rest_go_on(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dies.py").write_text(DIES)
    config = write_sweep(tmp_path / "configs", LETHAL_SWEEP.format(folder=tmp_path / "configs"))
    with cluster(tmp_path) as team:
        team.scheduler(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
        team.worker("one", nanny=True)
        out = tmp_path / "out"
        status, lines, _ = ended(start(config, out, "--cluster", team.address))
    assert status == 2
    assert not any("Traceback" in line for line in lines)
    (line,) = (line for line in lines if line.startswith("error: "))  # a busy machine's workers may say more
    assert line.startswith(f"error: {out}: 1 of 4 runs not made, since workers died with them")
    assert line.endswith("dies.py:Dies, cache 0.5 (its workers died)")
    assert len(kept(out)) == 3


@pytest.mark.parametrize(("address", "why"), [
    ("nonsense", "missing port number in address 'nonsense'"),
    ("carrier-pigeon://there:1", "unknown address scheme 'carrier-pigeon'"),
    ("127.0.0.1:1", "Timed out trying to connect"),
    (str(ROOT / "pyproject.toml"), "Expecting value"),
])
def test_a_scheduler_that_cannot_be_reached_is_one_line(undisturbed, tmp_path, monkeypatch, address, why):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    status, lines, _ = ended(start(undisturbed[0], tmp_path / "out", "--cluster", address))
    assert status == 2
    (line,) = lines
    assert line.startswith(f"error: --cluster {address}: no Dask scheduler can be reached there: {why}")
    assert not (tmp_path / "out").exists()


def test_a_worker_of_other_code_is_refused(undisturbed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "moesim", other / "moesim", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "configs").symlink_to(ROOT / "configs")
    with (other / "moesim" / "replay.py").open("a") as file:
        file.write("# changed\n")
    with cluster(tmp_path) as team:
        team.scheduler()
        team.worker("other", PYTHONPATH=str(other))
        status, lines, _ = ended(start(undisturbed[0], tmp_path / "out", "--cluster", team.address))
    assert status == 2
    (line,) = lines
    assert line.startswith("error: worker tcp://127.0.0.1:")
    assert line.endswith("install the same code, and start the worker again")
    assert not (tmp_path / "out" / "results.parquet").exists()


def test_without_dask_the_flag_says_what_to_install(undisturbed, tmp_path):
    """Dask is imported for this flag alone."""
    code = (
        "import sys; sys.modules['distributed'] = None; from moesim.cli import main; "
        f"sys.argv = ['moesim', 'sweep', {str(undisturbed[0])!r}, '--out', {str(tmp_path / 'out')!r}, *sys.argv[1:]]; "
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "--cluster", "a:1"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: --cluster needs distributed: pip install 'moesim[cluster]'\n")
    local = subprocess.run([sys.executable, "-c", code, "-q"], capture_output=True, text=True, cwd=ROOT)
    assert (local.returncode, local.stderr) == (0, "")


@pytest.fixture
def told(undisturbed, monkeypatch):
    """The text of a task, as a dictionary to be changed."""
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://there:1"))
    sweep = Sweep.load(undisturbed[0])
    return json.loads(as_text(Group(checked(sweep)[0], sweep.runs[:1]), "a sweep"))


def test_what_travels_is_plain_text_and_its_answer_the_row(told, undisturbed, tmp_path):
    (row,) = answers_in(answer(json.dumps(told)))
    out = tmp_path / "out"
    swept(undisturbed[0], out)
    line = (out / "finished.jsonl").read_bytes().splitlines()[[row["run_hash"] == each for each in kept(out)].index(1)]
    assert json.loads(line[17:])["row"] == row


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda told: told | {"directory": "/no/such/place"}, "/no/such/place: No such file or directory: workers need"),
    (lambda told: {**told, "runs": [told["runs"][0] | {"run_hash": "0" * 64}]}, "it sees other files than"),
    (
        lambda told: {**told, "runs": [
            {**told["runs"][0], "config": told["runs"][0]["config"] | {"trace": "/no/such.safetensors"}}
        ]},
        "/no/such.safetensors",
    ),
])
def test_a_worker_without_the_files_says_so_in_one_line(told, spoil, words):
    with pytest.raises(InputError, match=words) as error:
        answers_in(answer(json.dumps(spoil(told))))
    assert str(error.value).startswith("worker tcp://there:1: ")


def test_a_worker_forgets_what_another_sweep_left_in_its_place(told, undisturbed, tmp_path):
    """The same relative path, in another directory: what is kept by path would be the first one's."""
    write_sweep(tmp_path / "first", tokens=40)
    write_sweep(tmp_path / "second", tokens=50)
    here = Path.cwd()
    rows = []
    for name in ("first", "second"):
        from moesim.run_config import RunConfig, file_hash
        from moesim.window import load_trace, trace_hash

        os.chdir(tmp_path / name)
        try:
            for kept_by_path in (load_trace, trace_hash, file_hash):
                kept_by_path.cache_clear()
            config = RunConfig(trace="tiny.safetensors", model="./tiny.yaml", hardware="rtx-a6000", policy="on-demand")
            rows.append(json.loads(as_text(Group(None, [config]), name)))
        finally:
            os.chdir(here)
    assert rows[0]["runs"][0]["config"] == rows[1]["runs"][0]["config"]
    first, second = (answers_in(answer(json.dumps(each)))[0] for each in rows)
    assert first["trace_hash"] != second["trace_hash"]
