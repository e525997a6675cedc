"""Sweeps: the same bytes whatever happens, nothing computed twice or half-written, no folder taken from others."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import moesim.sweep
from moesim.capacity import Capacity
from moesim.config import Sweep
from moesim.errors import ConfigError, InputError
from moesim.result import SCHEMA
from moesim.run import simulate
from moesim.run_config import RunConfig, run_hash
from moesim.sweep import LostRunsError, run_sweep
from moesim.sweep_folder import SweepError
from moesim.sweep_tasks import Drawing, Group, shares, split
from moesim.window import Window
from moesim.workers import LostWorkerError, answers
from tests.sweeps_for_tests import DIES, LETHAL_SWEEP, RUNS, SWEEP, write_sweep

ENOUGH_TOKENS = 400
"""Of a trace whose sweep takes long enough to be killed in the middle."""


def swept(config, out, workers=1):
    """Run a sweep in this process; returns what it told about its progress."""
    told = []
    run_sweep(Sweep.load(config), out, workers, lambda done, total: told.append((done, total)))
    return told


def kept(out):
    """The hashes of the finished runs that a folder keeps, one for each line that is whole JSON."""
    hashes = []
    for line in (out / "finished.jsonl").read_bytes().splitlines():
        try:
            hashes.append(json.loads(line.partition(b" ")[2])["row"]["run_hash"])
        except ValueError:
            continue
    return hashes


@pytest.fixture
def config(tmp_path):
    return write_sweep(tmp_path / "configs")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep that nothing disturbed: its configuration and the bytes of its results."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_sweep(folder, tokens=ENOUGH_TOKENS)
    swept(config, folder / "out")
    return config, (folder / "out" / "results.parquet").read_bytes()


def test_one_row_per_run_in_the_order_of_the_configuration(config, tmp_path):
    told = swept(config, tmp_path / "out")
    assert told == [(done, RUNS) for done in range(RUNS + 1)]
    table = pq.read_table(tmp_path / "out" / "results.parquet")
    assert table.schema.equals(SCHEMA)
    runs = Sweep.load(config).runs
    assert table["run_hash"].to_pylist() == [run_hash(run) for run in runs]
    for place in (0, 7, RUNS - 1):
        assert table.to_pylist()[place] == simulate(runs[place]).row()


def test_sweep_json_says_what_the_report_needs(config, tmp_path):
    swept(config, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (said["name"], said["title"], said["runs"]) == ("tiny", "A tiny sweep", RUNS)
    assert list(said["grids"]) == ["policies", "links"]
    (fact,) = said["published"]
    assert (fact["grid"], fact["policy"], fact["cache_fraction"]) == ("policies", "lru", 0.5)
    assert (fact["tpot_ns"], fact["source"]) == (1_000_000, "made for tests")


def test_a_timeline_holds_the_asked_layers_of_one_token(config, tmp_path):
    swept(config, tmp_path / "out")
    (file,) = (tmp_path / "out" / "timelines").iterdir()
    drawn = json.loads(file.read_text())
    assert (drawn["policy"], drawn["cache_fraction"], drawn["layers"]) == ("lru", 0.5, [1, 2])
    kernels = [each for each in drawn["slices"] if each["track"] == "compute"]
    assert {1, 2} <= {each["layer"] for each in kernels}
    assert min(each["start_ns"] for each in kernels if each["layer"] == 1) == drawn["start_ns"]
    assert all(each["end_ns"] > drawn["start_ns"] and each["start_ns"] < drawn["end_ns"] for each in drawn["slices"])


def test_the_number_of_workers_changes_no_byte(undisturbed, tmp_path):
    config, expected = undisturbed
    told = swept(config, tmp_path / "out", workers=3)
    assert told == [(done, RUNS) for done in range(RUNS + 1)]
    assert (tmp_path / "out" / "results.parquet").read_bytes() == expected


def start(config, out, *more):
    """`moesim sweep` as a process group of its own."""
    command = [sys.executable, "-m", "moesim.cli", "sweep", str(config), "--out", str(out), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(true, process, seconds=60):
    """Wait until something holds while a process runs."""
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def children(pid):
    """The processes that a process has started and that still run."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def some_are_kept(out, few=3):
    return (out / "finished.jsonl").exists() and (out / "finished.jsonl").read_bytes().count(b"\n") >= few


def interrupt(process):
    """As a terminal does: every process of the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)


def disturbed(config, folder, disturb, *more, few=3, ready=lambda: None):
    """A sweep that was disturbed before its last run was kept: its folder, exit code, output and error output.

    On a busy machine it may be through before we look again; then another one is started.
    """
    for number in range(5):
        ready()
        out = folder / f"out-{number}"
        process = start(config, out, *more)
        wait_for(lambda out=out: some_are_kept(out, few), process)
        disturb(process)
        stdout, stderr = process.communicate(timeout=120)
        if len(kept(out)) < RUNS:
            return out, process.returncode, stdout, stderr
    raise AssertionError("five sweeps were all through before they could be disturbed")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see what became of the workers")
def test_killed_and_run_again_it_continues_and_recomputes_nothing(undisturbed, tmp_path):
    config, expected = undisturbed
    team = []

    def kill(process):
        with suppress(FileNotFoundError):
            team[:] = children(process.pid)
        process.kill()

    out, _, _, stderr = disturbed(config, tmp_path, kill, "--workers", "2")
    assert team
    assert "Traceback" not in stderr  # of the workers: they end without a word
    before = kept(out)
    assert 3 <= len(before) < RUNS
    assert not (out / "results.parquet").exists()
    end = time.monotonic() + 30
    while any(alive(pid) for pid in team):  # workers end with their parent
        assert time.monotonic() < end
        time.sleep(0.05)
    assert kept(out) == before  # and write nothing behind its back

    told = swept(config, out)
    assert told[0] == (len(before), RUNS)
    assert Counter(kept(out)).most_common(1)[0][1] == 1
    assert kept(out)[: len(before)] == before
    assert (out / "results.parquet").read_bytes() == expected


def test_ctrl_c_leaves_the_finished_rows_and_one_line(undisturbed, tmp_path):
    config, expected = undisturbed
    out, status, stdout, stderr = disturbed(config, tmp_path, interrupt, "--workers", "2", few=1)
    assert status == 130
    assert stdout == ""
    assert [line for line in stderr.splitlines() if not line.endswith("runs")] == [
        "error: interrupted; the same command continues where it was"
    ]
    table = pq.read_table(out / "results.parquet")
    assert 1 <= table.num_rows == len(kept(out)) < RUNS
    order = [run_hash(run) for run in Sweep.load(config).runs]
    assert table["run_hash"].to_pylist() == [name for name in order if name in set(kept(out))]

    swept(config, out)
    assert (out / "results.parquet").read_bytes() == expected


def damage_tear(lines):
    """What a crash in the middle of a write leaves."""
    return b"".join(lines)[:-40]


def damage_flip(lines):
    """A digit of a figure changed on the disk."""
    assert b'"hits": ' in lines[-1]
    return b"".join([*lines[:-1], lines[-1].replace(b'"hits": ', b'"hits": 1')])


def damage_join(lines):
    """A torn line with whole ones behind it."""
    return b"".join([lines[0][:100], b"\n", *lines[1:]])


@pytest.mark.parametrize("damage", [damage_tear, damage_flip, damage_join])
def test_a_damaged_line_is_found_and_its_run_done_again(config, tmp_path, damage):
    out = tmp_path / "out"
    swept(config, out)
    expected = (out / "results.parquet").read_bytes()
    journal = out / "finished.jsonl"
    journal.write_bytes(damage(journal.read_bytes().splitlines(keepends=True)))
    assert swept(config, out) == [(RUNS - 1, RUNS), (RUNS, RUNS)]
    assert (out / "results.parquet").read_bytes() == expected
    assert swept(config, out) == [(RUNS, RUNS)]


def test_a_longer_configuration_adds_its_runs_and_keeps_the_others(config, tmp_path):
    out = tmp_path / "out"
    swept(config, out)
    old = {path.name for path in (out / "timelines").iterdir()}
    longer = SWEEP.replace("[10%, 60%]", "[10%, 60%, 90%]").replace("layers: [1, 2]", "layers: [0, 1]")
    told = swept(write_sweep(config.parent, longer), out)
    assert told[0] == (RUNS, RUNS + 6)
    assert pq.read_table(out / "results.parquet").num_rows == RUNS + 6
    assert json.loads((out / "sweep.json").read_text())["grids"]["links"]["cache"] == ["10%", "60%", "90%"]
    new = {path.name for path in (out / "timelines").iterdir()}
    assert len(new) == 1
    assert not new & old


def test_rows_of_other_code_are_made_again(config, tmp_path, monkeypatch):
    swept(config, tmp_path / "out")
    monkeypatch.setattr(moesim.sweep, "code_hash", lambda: "another")
    assert swept(config, tmp_path / "out")[0] == (0, RUNS)


def holding(folder, name, text):
    folder.mkdir()
    (folder / name).write_text(text)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("make", "words"), [
    (lambda out: out.write_text("mine"), "is a file"),
    (lambda out: holding(out, "notes.txt", "mine"), "is not empty and holds no sweep"),
    (lambda out: holding(out, "sweep.json", '{"name": "other"}'), "holds the sweep 'other', not 'tiny'"),
    (lambda out: holding(out, "sweep.json", "torn"), "not the description of a sweep"),
])
def test_a_folder_of_something_else_is_refused_and_left_alone(config, tmp_path, make, words):
    out = tmp_path / "out"
    make(out)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=words) as error:
        swept(config, out)
    assert str(out) in str(error.value)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == before
    assert not (out / ".lock").exists()


def test_a_folder_in_use_is_refused(config, tmp_path):
    out = tmp_path / "out"
    swept(config, out)
    before = files(out)
    with (out / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=f"{out}: another process is sweeping into this folder"):
            swept(config, out)
    assert files(out) == before
    swept(config, out)


def test_a_folder_that_cannot_be_made_is_one_line(config):
    with pytest.raises(SweepError, match=r"^/dev/null/out: cannot be written: Not a directory$"):
        swept(config, Path("/dev/null/out"))


MISFITS = [  # (what is replaced, by what, and what the message says): each alone is right, together they are not
    ("[10%, 60%]", "[1%]", ":13: grids.links, policy lru: .* is 0 slots, fewer than its top-k 2"),
    ("rtx-a6000", "rtx-a6000\nhardware.hbm_share: 1.5", "hbm_share = 1.5: a share is at most 1"),
    ("54.9e9", "-1e9", ":13: grids.links, .*hardware.link_bytes_per_s = -1e\\+09: must be more than 0"),
    ("./tiny.yaml", "olmoe-1b-7b", ":9: grids.policies.*MoE layers 3 do not match model olmoe-1b-7b: expected 16"),
    ("prefetch-and-refetch", "'prefetch-and-refetch[predictor=oracle]'", "oracle"),
    ("[1, 2]", "[1, 3]", r":21: timelines.0.layers = \[1, 3\]: the trace has layers 0 to 2"),
]


@pytest.mark.parametrize(("old", "new", "words"), MISFITS)
def test_what_does_not_fit_together_is_found_before_anything_is_written(tmp_path, old, new, words):
    config = write_sweep(tmp_path, SWEEP.replace(old, new))
    with pytest.raises(ConfigError, match=words) as error:
        swept(config, tmp_path / "out")
    assert str(error.value).startswith(f"{config}:")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_whole_files(undisturbed, tmp_path):
    config, expected = undisturbed
    out = tmp_path / "out"

    def little_room():  # no file may grow beyond this: what a full disk does, for one process
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    command = [sys.executable, "-m", "moesim.cli", "sweep", str(config), "--out", str(out), "--workers", "1", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=little_room, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"error: {out}/finished.jsonl: cannot be written: File too large\n"
    assert 0 < len(kept(out)) < RUNS
    assert (out / "finished.jsonl").read_bytes().endswith(b"}\n")
    assert {path.name for path in out.iterdir()} == {".lock", "finished.jsonl", "sweep.json", "timelines"}

    before = len(kept(out))
    assert swept(config, out)[0] == (before, RUNS)
    assert (out / "results.parquet").read_bytes() == expected


@pytest.mark.parametrize("policies", ["[lru, '{dies}', fifo]", "['{dies}', '{dies}[evict={dies}]', lru]"])
def test_a_run_whose_worker_is_killed_for_its_memory_is_reported_and_the_rest_go_on(tmp_path, policies):
    """One lethal run, or as many as there are workers."""
    dies = f"{tmp_path}/dies.py:Dies"
    (tmp_path / "dies.py").write_text(DIES)
    text = LETHAL_SWEEP.format(folder=tmp_path).replace(f"[lru, '{dies}', fifo]", policies.format(dies=dies))
    config, out = write_sweep(tmp_path, text), tmp_path / "out"
    runs = Sweep.load(config).runs
    lethal = [run for run in runs if "Dies" in run.policy]
    with pytest.raises(LostRunsError) as error:
        swept(config, out, workers=2)
    words = str(error.value)
    assert words.startswith(f"{out}: {len(lethal)} of 4 runs not made, since workers died with them")
    assert words.count("(signal 9, most likely for its memory)") == len(lethal)
    assert all(f"grids.all, policy {run.policy}, cache 0.5" in words for run in lethal)
    table = pq.read_table(out / "results.parquet")
    assert table["run_hash"].to_pylist() == [run_hash(run) for run in runs if run not in lethal]


def test_groups_are_cut_only_where_one_would_hold_up_the_others():
    run = RunConfig(trace=Path("t"), model="m", hardware="h", policy="lru", interval=False)
    many = Group(None, [run] * 100)
    few = [Group(None, [run] * 2) for _ in range(40)]
    pieces = split([many, *few], workers=4)
    assert sum(len(piece.runs) for piece in pieces) == 180
    assert 1 < sum(len(piece.runs) > 2 for piece in pieces) <= 16
    assert [piece.cost for piece in pieces] == sorted((piece.cost for piece in pieces), reverse=True)
    assert len(split(few, workers=1)) == 40


def test_workers_of_a_cluster_get_equal_shares_and_kin_together():
    windows = [Window(Path("t"), 9, "lru", Capacity(8 * slots), 2, False) for slots in range(1, 5)]
    run = RunConfig(trace=Path("t"), model="m", hardware="h", policy="lru", interval=False)
    tasks = [Group(window, [run]) for _ in range(6) for window in windows]  # kin lie apart
    given = shares(tasks, 3)
    assert sorted(map(given.count, range(3))) == [8, 8, 8]
    pairs = {(task.window.capacity.slots, worker) for task, worker in zip(tasks, given, strict=True)}
    assert len(pairs) == 6, "four kin, two of them cut once"
    assert set(shares([Drawing("one", run, (0, 1)), *tasks], 1)) == {0}


def squares(task):
    """Two answers of every task."""
    yield task
    yield task * task


def fails(task):
    if task == 3:
        raise InputError("three is not allowed")
    yield task


def breaks(task):
    yield 1 // (task - 3)


def dies(task):
    if task == 3:
        os._exit(7)
    yield task


@pytest.mark.parametrize("workers", [1, 2])
def test_every_answer_of_every_task_arrives_once(workers):
    found = Counter(answers(range(10), squares, workers, kin=lambda task: task % 2))
    assert found == Counter([*range(10), *(task * task for task in range(10))])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_reaches_the_caller_as_it_is(workers):
    with pytest.raises(InputError, match=r"^three is not allowed$"):
        list(answers(range(6), fails, workers, kin=id))


def test_a_bug_in_a_worker_shows_where():
    with pytest.raises(RuntimeError, match=r"1 // \(task - 3\)"):
        list(answers(range(6), breaks, 2, kin=id))


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(LostWorkerError, match=r"a worker process died \(exit code 7\)") as error:
        list(answers(range(6), dies, 2, kin=id))
    assert "\n" not in str(error.value)


def dies_after_one(task):
    """Counts down, and takes its process with it at three."""
    while task:
        if task == 3:
            os._exit(7)
        yield task
        task -= 1


def test_what_is_left_of_a_task_is_done_by_another_worker():
    """Of 5, 4, (3), 2, 1 all but one arrive, and the task beside it too."""
    told = []

    def rest(task, answered, why):
        told.append((task, answered, why))
        return [task - answered - 1]

    found = Counter(answers([5, 2, 3], dies_after_one, 2, kin=id, rest=rest))
    assert found == Counter([5, 4, 2, 1, 2, 1, 2, 1])
    assert sorted(told) == [(3, 0, "exit code 7"), (5, 2, "exit code 7")]


def test_no_tasks_no_answers():
    assert list(answers([], squares, 4, kin=id)) == []
