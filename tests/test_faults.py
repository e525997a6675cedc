"""A sweep that is killed at any moment, that may not write, or whose files were torn: whole rows, once each, or a line.

Full disks, second sweeps and workers killed for their memory are in test_sweep.py, lost machines in test_cluster.py.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from moesim.config import Sweep
from moesim.errors import InputError
from moesim.report import write_report
from moesim.run_config import run_hash
from moesim.sweep import run_sweep
from tests.sweeps_for_tests import RUNS, write_sweep
from tests.test_sweep import files, kept, swept

KILLS = 20


def sweep_in_a_process(config, out):
    """Its only purpose is to be killed."""
    run_sweep(Sweep.load(config), out, 1, lambda done, total: None)


def written(out):
    path = out / "finished.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_killed_at_twenty_random_moments_every_row_is_there_once(tmp_path):
    """Each time it is killed a random moment after it has begun, or after it has written a little more."""
    config = write_sweep(tmp_path / "configs")
    swept(config, tmp_path / "undisturbed")
    expected = (tmp_path / "undisturbed" / "results.parquet").read_bytes()
    context = get_context("forkserver")  # imports once, not twenty times
    context.set_forkserver_preload([__name__])
    out, moments = tmp_path / "out", random.Random(6)
    finished, before = 0, []
    for number in range(KILLS):
        process = context.Process(target=sweep_in_a_process, args=(config, out))
        process.start()
        enough = written(out) + moments.choice([0, 1, 1, 5_000])
        while process.is_alive() and written(out) < enough:
            time.sleep(0.001)
        process.join(moments.uniform(0, 0.05 if number else 0))
        process.kill()
        process.join()
        finished += process.exitcode != -signal.SIGKILL
        if (out / "results.parquet").exists():
            assert (out / "results.parquet").read_bytes() == expected
        after = kept(out) if (out / "finished.jsonl").exists() else []
        assert after[: len(before)] == before
        assert len(set(after)) == len(after)
        before = after
    assert finished < KILLS / 2, "the sweep was over too soon to be killed"
    swept(config, out)
    assert sorted(kept(out)) == sorted(run_hash(run) for run in Sweep.load(config).runs)
    assert len(kept(out)) == RUNS
    assert (out / "results.parquet").read_bytes() == expected


def without_power_over_permissions():
    """What to put before a command so that root may not write where a user may not."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root writes everywhere, and there is no setpriv to prevent it")
    return ["setpriv", "--bounding-set=-dac_override"]


@pytest.mark.parametrize("half_done", [False, True])
def test_a_read_only_output_is_one_line_and_stays_as_it_was(tmp_path, half_done):
    config, out = write_sweep(tmp_path / "configs"), tmp_path / "there" / "out"
    out.parent.mkdir()
    if half_done:
        swept(config, out)
        journal = out / "finished.jsonl"
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:5]))
    before = files(out)
    folders = [folder for folder in (out.parent, out, out / "timelines") if folder.exists()]
    for path in [*before, *folders]:
        path.chmod(0o555 if path in folders else 0o444)
    try:
        done = subprocess.run(
            [*without_power_over_permissions(), sys.executable, "-m", "moesim.cli", "sweep", config, "--out", out],
            capture_output=True, text=True, cwd=Path(__file__).parents[1],
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert done.returncode == 2
    assert done.stderr == f"error: {out}: cannot be written: Permission denied\n"
    assert files(out) == before


@pytest.mark.parametrize("name", ["results.parquet", "sweep.json"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_torn_result_is_found_and_not_read(tmp_path, name, part):
    config, out = write_sweep(tmp_path / "configs"), tmp_path / "out"
    swept(config, out)
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError) as error:
        write_report(out)
    assert str(out) in str(error.value)
    assert not (out / "report.html").exists()
    if name == "results.parquet":  # made again from the rows that are kept, none of which is made again
        assert swept(config, out) == [(RUNS, RUNS)]
        assert (out / name).read_bytes() == whole
