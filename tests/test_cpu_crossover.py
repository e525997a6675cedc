"""Where executing on the CPU stops paying: worked out from a machine's figures, and found in simulated runs."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from moesim.catalogue import names
from moesim.hardware import HardwareSpec
from moesim.model import ModelSpec
from moesim.run import simulate
from moesim.run_config import RunConfig
from moesim.trace import DECODE, Trace, id_dtype
from tests.cpu_crossover import crossover_tokens
from tests.traces_for_tests import metadata

LAYERS, STEPS = 2, 3
ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "cpu-experts.md").read_text().splitlines()


def two_layers_of(name, folder):
    """The model with all its shapes, and fewer layers."""
    described = yaml.safe_load((ROOT / "configs" / "models" / f"{name}.yaml").read_text())
    (folder / "few.yaml").write_text(yaml.safe_dump(described | {"layers": LAYERS}))
    return ModelSpec.load(str(folder / "few.yaml"))


def batch_trace(model, tokens, path):
    """Steps of `tokens` sequences that all choose the same experts, others in each step and layer."""
    step = np.repeat(np.arange(STEPS), tokens)
    first = (step[:, None] * LAYERS + np.arange(LAYERS)[None, :]) * model.top_k
    experts = (first[..., None] + np.arange(model.top_k)) % model.experts
    Trace(
        experts=experts.astype(id_dtype(model.experts)), weights=None, step=step.astype(np.uint32),
        request=np.tile(np.arange(tokens), STEPS).astype(np.uint32), position=step.astype(np.uint32),
        phase=np.full(len(step), DECODE, np.uint8), metadata=metadata(LAYERS, model.experts, model.top_k),
    ).save(path)
    return path


@pytest.mark.parametrize(
    ("card", "name"),
    [("rtx-a6000", "qwen3-30b-a3b"), ("rtx-4090", "mixtral-8x7b"), ("h200", "mixtral-8x7b"), ("gh200", "olmoe-1b-7b"),
     ("h200", "qwen3-30b-a3b"), ("h100", "mixtral-8x7b")],
)
def test_the_cpu_wins_below_the_token_count_that_follows_from_the_figures(card, name, tmp_path):
    model, hardware = two_layers_of(name, tmp_path), HardwareSpec.load(card).at("centre")
    expected = crossover_tokens(hardware, model)

    def step_ns(policy, tokens):
        """Times of experts and copies alone differ; without a cache every step is the same."""
        config = RunConfig(
            trace=batch_trace(model, tokens, tmp_path / f"{tokens}.safetensors"), model=str(tmp_path / "few.yaml"),
            hardware=card, policy=policy, engine="eager", warmup_tokens=0, interval=False, context_tokens=64,
        )
        return simulate(config).row()["tpot_mean_ns"]

    if expected > 1:
        assert step_ns("cpu", expected - 1) < step_ns("on-demand", expected - 1)
    assert step_ns("cpu", expected) >= step_ns("on-demand", expected)


ROWS = {
    card: cells for card, *cells in ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in DOCS)
    if card in names("hardware")
}


@pytest.mark.parametrize("card", ROWS)
def test_the_table_in_the_docs_is_what_the_figures_give(card):
    hardware = HardwareSpec.load(card).at("centre")
    models = map(ModelSpec.load, ("olmoe-1b-7b", "qwen3-30b-a3b", "gpt-oss-120b", "mixtral-8x7b"))
    found = [crossover_tokens(hardware, model) for model in models]
    assert [f"{each}" if each > 1 else "never" for each in found] == ROWS[card]


def test_the_table_has_every_card():
    assert len(ROWS) == 7
