"""Every policy that ships serves a crowd, or says in one line why it cannot."""

from dataclasses import replace

import pytest

from moesim.errors import ConfigError
from moesim.policies.composition import known_policies, parse
from moesim.requests.serving import StreamConfig
from moesim.run import simulate
from moesim.run_config import RunConfig
from tests.policies.test_contract import scored_trace
from tests.requests.streams import trace_of
from tests.sweeps_for_tests import MODEL

LENGTHS = ((4, 5), (2, 3), (6, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a trace of three requests with whatever any policy reads."""
    folder = tmp_path_factory.mktemp("policies")
    (folder / "tiny.yaml").write_text(MODEL)
    shaped = trace_of(*LENGTHS, layers=3, experts=8)
    scored = scored_trace(shaped.tokens, 3, 8, 2)
    replace(
        scored, step=shaped.step, request=shaped.request, position=shaped.position, phase=shaped.phase
    ).save(folder / "tiny.safetensors")
    return folder


@pytest.mark.parametrize("policy", known_policies())
def test_a_crowd_is_served(folder, policy):
    config = RunConfig(
        trace=folder / "tiny.safetensors", model=str(folder / "tiny.yaml"), hardware="rtx-a6000", policy=policy,
        cache_fraction=0.4, interval=False, stream=StreamConfig(arrivals_per_s=2000, requests=7, max_batch=3),
    )
    composed = parse(policy)
    if composed.oracle or composed.draft.longest or composed.prefetch.of_next_step:
        with pytest.raises(ConfigError, match=rf"^{policy} .*stream of requests|^{policy} .*arrive as a stream"):
            simulate(config)
        return
    row = simulate(config).row()
    assert row["requests_finished"] == 7
    assert row["queueing_mean_ns"] > 0
    assert row["batch_tokens"] == 3
    assert row["tokens_measured"] == sum(LENGTHS[number % 3][1] for number in range(7))
    parts = ("attention", "experts", "exposed_copy", "host", "idle")
    assert row["run_total_ns"] == sum(row[f"run_{part}_ns"] for part in parts)
    assert row["accesses"] == row["hits"] + row["misses"]
