"""What is fed spoiled files: each target has files to begin with and a function that must take or refuse them."""

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from moesim.config import Sweep
from moesim.curve import curves_of
from moesim.engine import EngineSpec
from moesim.errors import LONGEST_MESSAGE, InputError
from moesim.events import steps
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.policies.composition import PolicySpec
from moesim.trace import Trace
from moesim.trace_import import import_trace
from moesim.trace_summary import summarize
from moesim.yaml_file import read_model
from tests.fuzz.mutations import spoiled, spoiled_headers
from tests.trace.examples import example

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Target:
    """`use` raises InputError to refuse a file."""

    suffix: str
    bases: tuple[bytes, ...]
    """Files that are taken as they are, and some that aliases blow up; all are spoiled."""
    spoil: Callable[[tuple[bytes, ...]], st.SearchStrategy[bytes]]
    use: Callable[[Path], object]
    weight: int
    """Its share of the cases."""
    laughs: tuple[str, ...] = ()
    """Keys under which a file grows without end when its aliases are written out."""

    @property
    def files(self) -> st.SearchStrategy[bytes]:
        """Spoiled files."""
        return self.spoil((*self.bases, *map(_laughs, self.laughs)))


def _use_trace(path: Path) -> None:
    trace = Trace.load(path)
    trace.validate()
    trace.content_hash()
    summarize(trace, 100)
    for step in steps(trace):
        for layer in range(step.layers):
            step.touch_order(layer)
    if trace.layers * trace.n_experts < 10_000:
        curves_of(trace, optimum=trace.tokens < 40)


def _use_import(path: Path) -> None:
    trace = import_trace(path)
    summarize(trace, 100)


def _use_sweep(path: Path) -> None:
    path.with_name("reference.safetensors").touch()
    Sweep.load(path)


def _use_hardware(path: Path) -> None:
    for end in ("centre", "fast", "slow"):
        HardwareSpec.load(str(path)).at(end)


def _use_engine(path: Path) -> None:
    EngineSpec.load(str(path))


def _use_model(path: Path) -> None:
    ModelSpec.load(str(path))


def _use_policy(path: Path) -> None:
    read_model(path, PolicySpec)


def _saved(trace: Trace) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        trace.save(path)
        return path.read_bytes()


def _traces() -> tuple[bytes, ...]:
    return (
        _saved(example()),
        _saved(example(predictors={"residual": (1, 4, True)}, scores=True, dropped=0.3)),
        _saved(example(tokens=5, layers=2, experts=300, top_k=3, weights=False)),
    )


def _rows() -> list[tuple[int, ...]]:
    return [
        (step, 0, step, int(step > 1), layer, slot, (step + 3 * layer + slot) % 8)
        for step in range(4) for layer in range(2) for slot in range(2)
    ]


_COLUMNS = ("step", "request", "position", "phase", "layer", "slot", "expert")


def _csv() -> tuple[bytes, ...]:
    lines = [",".join(_COLUMNS), *(",".join(map(str, row)) for row in _rows())]
    weighted = [f"{line},{'weight' if not number else 0.5}" for number, line in enumerate(lines)]
    return "\n".join(lines).encode(), "\n".join(weighted).encode()


def _jsonl() -> tuple[bytes, ...]:
    return ("\n".join(json.dumps(dict(zip(_COLUMNS, row, strict=True))) for row in _rows()).encode(),)


def _nvmoe() -> tuple[bytes, ...]:
    token = [[layer, (layer + slot) % 8] for layer in (1, 2, 3) for slot in range(2)]
    return ("\n".join([json.dumps(token)] * 4).encode(),)


def _npz() -> tuple[bytes, ...]:
    experts = np.arange(24, dtype=np.int8).reshape(4, 3, 2) % 8
    files = []
    for save in (np.savez, np.savez_compressed):
        for array in (experts, experts.astype(np.int64)):
            buffer = io.BytesIO()
            save(buffer, experts=array, offsets=np.array([0, 2, 4]))
            files.append(buffer.getvalue())
    return tuple(files)


def _shipped(folder: str, *names: str) -> tuple[bytes, ...]:
    return tuple((CONFIGS / folder / f"{name}.yaml").read_bytes() for name in names)


_SWEEP = b"""\
name: small
model: olmoe-1b-7b
trace: reference.safetensors
hardware: rtx-a6000
warmup_tokens: 8
grids:
  sizes:
    policy: [lru, 'least-stale[key=cyclic]', belady]
    cache: [5%, 0.25, 50%]
    context_tokens: 1024
  links: {policy: lru, cache: 25%, hardware.link_bytes_per_s: [10e9, 25e9], interval: false}
timelines:
  - {policy: lru, cache: 25%, context_tokens: 1024}
"""
_HUGGING_FACE = json.dumps({
    "model_type": "qwen3_moe", "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64,
    "moe_intermediate_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 100, "torch_dtype": "bfloat16", "decoder_sparse_step": 1, "mlp_only_layers": [],
    "norm_topk_prob": True, "architectures": ["Qwen3MoeForCausalLM"], "tie_word_embeddings": False,
}, indent=1).encode()


def _laughs(key: str) -> bytes:
    """Lists of lists of lists: each holds nine times the one before, so spelt out the last is billions long."""
    lists = ["&a [x, x, x, x, x, x, x, x, x]"]
    for before, name in pairwise("abcdefghijk"):
        lists.append(f"&{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join([f"{key}:", *(f"  - {each}" for each in lists)]).encode()


TARGETS = {
    "trace": Target(".safetensors", _traces(), spoiled, _use_trace, 6),
    "trace-header": Target(".safetensors", _traces(), spoiled_headers, _use_trace, 6),
    "csv": Target(".csv", _csv(), spoiled, _use_import, 4),
    "jsonl": Target(".jsonl", _jsonl(), spoiled, _use_import, 4),
    "nvmoe": Target(".jsonl", _nvmoe(), spoiled, _use_import, 3),
    "npz": Target(".npz", _npz(), spoiled, _use_import, 4),
    "sweep": Target(".yaml", (_SWEEP,), spoiled, _use_sweep, 3, ("name", "grids", "policy", "timelines")),
    "hardware": Target(".yaml", _shipped("hardware", "rtx-a6000"), spoiled, _use_hardware, 1),
    "engine": Target(".yaml", _shipped("engines", "yalis", "graph"), spoiled, _use_engine, 2),
    "model": Target(".yaml", _shipped("models", "olmoe-1b-7b"), spoiled, _use_model, 2),
    "hugging-face": Target(".json", (_HUGGING_FACE,), spoiled, _use_model, 3),
    "policy": Target(
        ".yaml", _shipped("policies", "lru", "prefetch-and-refetch"), spoiled, _use_policy, 2, ("name", "open_rules")
    ),
}


def feed(target: Target, data: bytes, folder: Path) -> bool:
    """Whether the target takes the bytes; it may refuse them in one line that names the file, and nothing else."""
    path = folder / f"input{target.suffix}"
    path.write_bytes(data)
    try:
        target.use(path)
    except InputError as error:
        message = str(error)
        assert message.isprintable(), f"not one plain line: {message!r}"
        assert len(message) <= LONGEST_MESSAGE, f"a line of {len(message)} characters: {message[:200]!r}"
        assert path.name in message, f"does not name the file: {message!r}"
        return False
    return True
