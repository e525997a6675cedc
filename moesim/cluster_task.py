"""A sweep's task on a worker of a cluster: text in, text out, so that nothing of ours travels as a pickle.

Both sides see the same files at the same paths. That is not taken on trust: the worker must arrive at the run hash
that it was told, which covers the content of every input, and its moesim must be the same code.
"""

import json
import sys
from contextlib import chdir
from pathlib import Path
from threading import Lock
from typing import Any

import moesim
from moesim.code_hash import code_hash
from moesim.errors import InputError
from moesim.run import simulate
from moesim.run_config import RunConfig, run_hash
from moesim.sweep_tasks import Drawing, Drawn, Row, Task, draw

_CODE = code_hash()
"""Of the code that this process runs; the files may be newer by the time that a task comes."""
_TURN = Lock()
"""A worker with several threads does one task at a time: runs share caches and the working directory."""
_sweeps = [""]
"""The sweep whose tasks this process did last."""


def as_text(task: Task, sweep: str) -> str:
    """What a worker needs to know of a task; `sweep` tells one call of `run_sweep` from another."""
    runs = [task.run] if isinstance(task, Drawing) else task.runs
    drawing = {"name": task.name, "layers": task.layers} if isinstance(task, Drawing) else None
    return json.dumps({
        "sweep": sweep,
        "code": code_hash(),
        "moesim_version": moesim.__version__,
        "directory": str(Path.cwd()),
        "runs": [{"run_hash": run_hash(run), "config": run.model_dump(mode="json")} for run in runs],
        "drawing": drawing,
    })


def answer(text: str) -> str:
    """Do a task that `as_text` has described, on a worker; a refusal is an answer too."""
    asked = json.loads(text)
    if asked["code"] != _CODE:
        return _refusal(
            f"it has moesim {moesim.__version__} ({_CODE}) and this sweep moesim {asked['moesim_version']} "
            f"({asked['code']}): install the same code, and start the worker again"
        )
    try:
        with _TURN, chdir(asked["directory"]):
            _forget_other_sweeps(asked["sweep"])
            configs = []
            for each in asked["runs"]:
                config = RunConfig.model_validate(each["config"])
                if run_hash(config) != each["run_hash"]:
                    return _refusal(
                        f"where {config.trace}, {config.model}, {config.hardware} and the policy lie, it sees "
                        "other files than the process that hands out the sweep"
                    )
                configs.append(config)
            return json.dumps({"answers": _answers(asked["drawing"], configs)})
    except InputError as error:
        return _refusal(str(error))
    except OSError as error:
        return _refusal(f"{error.filename}: {error.strerror}: workers need the files of a sweep at the same paths")


def answers_in(text: str) -> list[Row | Drawn]:
    """What a worker has answered.

    Raises:
        InputError: it refused.
    """
    content = json.loads(text)
    if "refusal" in content:
        raise InputError(content["refusal"])
    return [Drawn(**each["drawn"]) if "drawn" in each else each["row"] for each in content["answers"]]


def _answers(drawing: dict[str, Any] | None, configs: list[RunConfig]) -> list[dict[str, Any]]:
    if drawing is None:
        return [{"row": simulate(config).row()} for config in configs]
    first, last = drawing["layers"]
    drawn = draw(Drawing(drawing["name"], configs[0], (first, last)))
    return [{"drawn": {"name": drawn.name, "content": drawn.content}}]


def _refusal(why: str) -> str:
    from distributed import get_worker

    return json.dumps({"refusal": f"worker {get_worker().address}: {why}"})


def _forget_other_sweeps(sweep: str) -> None:
    """What is kept by path may be another file by now, or another directory's."""
    if _sweeps[0] == sweep:
        return
    _sweeps[0] = sweep
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "moesim":
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
