"""A stream through the front door: whole runs beside ordinary ones, the memory that it may use, and what it refuses."""

import json

import pytest

from moesim.errors import ConfigError
from moesim.model import ModelSpec
from moesim.prepare import prepare
from moesim.requests.serving import StreamConfig
from moesim.run import simulate
from moesim.run_config import RunConfig, run_hash
from tests.requests.streams import trace_of
from tests.sweeps_for_tests import MODEL

LENGTHS = ((5, 6), (3, 4), (0, 3), (2, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a trace of four requests."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "tiny.yaml").write_text(MODEL)
    trace_of(*LENGTHS, layers=3, experts=8).save(folder / "tiny.safetensors")
    slow = "".join(f'{{"arrival_s": {number}}}\n' for number in range(len(LENGTHS)))
    (folder / "slow.jsonl").write_text(slow)
    return folder


def config(folder, stream, policy="lru", cache=0.5, **more):
    values = {"warmup_tokens": 0, "interval": False} | more
    return RunConfig(
        trace=folder / "tiny.safetensors", model=str(folder / "tiny.yaml"), hardware="rtx-a6000", policy=policy,
        cache_fraction=cache, stream=None if stream is None else StreamConfig(**stream), **values,
    )


OF_THE_STREAM = (
    "arriv", "requests", "kv_", "vram_", "max_batch", "ttft_", "queueing_", "itl_", "e2e_", "run_",
    "output_tokens_per_s", "configuration",
)


@pytest.mark.parametrize(("policy", "cache"), [("on-demand", 0.0), ("lru", 0.5), ("lfu", 0.2)])
@pytest.mark.parametrize("device", ["fast", "simulated"])
def test_requests_that_never_meet_take_the_time_that_they_take_alone(folder, policy, cache, device):
    """One arrival a second, far slower than service: nobody waits, and every step is that of the recording."""
    alone = simulate(config(folder, None, policy, cache, device=device)).row()
    served = simulate(config(folder, {"arrivals": folder / "slow.jsonl"}, policy, cache, device=device)).row()
    assert served["queueing_p99_ns"] == 0
    for name in ("compulsory", "collision", "prefetch"):
        assert served[f"misses_{name}"] == alone[f"misses_{name}"]
    same = [
        name for name in alone
        if not name.startswith(("misses_", *OF_THE_STREAM)) and name not in ("clocked", "optimum_known")
    ]
    assert {name: served[name] for name in same} == {name: alone[name] for name in same}
    assert served["run_total_ns"] - served["run_idle_ns"] < 1e9 < served["run_idle_ns"]
    assert served["itl_mean_ns"] * (6 + 4 + 2 + 7) == pytest.approx(
        alone["decode_total_ns"] - (served["ttft_mean_ns"] * 4 - alone["ttft_mean_ns"] * 3), rel=1e-12
    ), "every decoded token but the promptless request's first, whose step is its time to first token"


def test_both_devices_serve_a_crowd_alike(folder):
    stream = {"arrivals_per_s": 300, "requests": 30, "max_batch": 3, "warmup_requests": 2, "arrival_seed": 5}
    policy = "prefetch-and-refetch"
    fast, simulated = (
        simulate(config(folder, stream, policy, device=device)).row() for device in ("fast", "simulated")
    )
    differing = {name for name in fast if fast[name] != simulated[name]}
    assert differing == {"device", "configuration", "run_hash"}
    assert fast["requests_finished"] == 30
    assert fast["requests_measured"] == 28
    assert fast["queueing_mean_ns"] > 0
    assert fast["clocked"]


def test_without_a_stream_nothing_in_the_row_speaks_of_one(folder):
    row = simulate(config(folder, None)).row()
    assert "stream" not in json.loads(str(row["configuration"]))
    assert row["requests"] is None
    assert row["itl_mean_ns"] is None
    assert not row["clocked"]


def test_experts_take_the_rest_of_the_card(folder):
    """By hand: 40 MB less dense weights less 1,000 tokens of KV, 3 layers x 2 x 4 heads x 64 x 2 bytes each."""
    model = ModelSpec.load(str(folder / "tiny.yaml"))
    dense, kv = model.dense_bytes, 1000 * 3 * 2 * 4 * 64 * 2
    expert = 3 * 512 * 256 * 2
    room = 13 * expert + 17
    row = simulate(
        config(
            folder, {"arrivals_per_s": 50, "kv_tokens": 1000, "cache_rest": True},
            hardware_overrides={"memory_bytes": dense + kv + room},
        )
    ).row()
    assert row["slots"] == 13
    assert row["kv_capacity_bytes"] == kv
    assert row["cache_fraction"] == pytest.approx(13 / 24)
    assert row["vram_free_bytes"] == 17
    assert row["feasible"]


def test_kv_cache_is_what_dense_weights_and_slots_leave(folder):
    model = ModelSpec.load(str(folder / "tiny.yaml"))
    run = prepare(
        config(
            folder, {"arrivals_per_s": 50},
            hardware_overrides={"memory_bytes": model.dense_bytes + 12 * model.expert_bytes + 100_000},
        )
    )
    assert run.serving is not None
    assert run.serving.limits.kv_bytes == 100_000
    assert list(run.serving.limits.request_kv_bytes) == [tokens * 3 * 2 * 4 * 64 * 2 for tokens in (11, 7, 3, 9)]


def test_an_arrivals_file_is_known_by_its_content(folder, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_text((folder / "slow.jsonl").read_text())
    other = tmp_path / "other.jsonl"
    other.write_text('{"arrival_s": 0}\n')
    first, same, different = (
        run_hash(config(folder, {"arrivals": path})) for path in (folder / "slow.jsonl", copy, other)
    )
    assert first == same != different


@pytest.mark.parametrize(
    ("stream", "more", "message"),
    [
        ({"arrivals_per_s": 1}, {"policy": "belady"}, "belady knows the future"),
        ({"arrivals_per_s": 1}, {"measured_tokens": 5}, "measured_tokens"),
        ({"arrivals_per_s": 1, "warmup_requests": 4}, {}, "warmup_requests 4: the stream has 4 requests"),
        ({"arrivals_per_s": 1, "kv_tokens": 10}, {}, "request 0: 11 tokens need 33,792 bytes.* are 30,720"),
        ({"arrivals_per_s": 1, "kv_tokens": 30}, {"context_tokens": 31}, "request 0: 31 tokens"),
        ({"arrivals_per_s": 1, "kv_tokens": 60_000_000, "cache_rest": True}, {}, "leave 0 slots"),
        ({"arrivals": "slow.jsonl", "requests": 5}, {}, "4 arrivals: requests asks for 5"),
        ({"arrivals": "absent.csv"}, {}, "absent.csv: No such file"),
        ({"arrivals": "long.csv"}, {}, "request 1 replays request 1: prompt_tokens 4: it has 3"),
        ({"arrivals": "far.csv"}, {}, "request 0 replays request 0: output_tokens 8: it returns 7"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(folder, stream, more, message):
    (folder / "long.csv").write_text("arrival_s,prompt_tokens\n0,\n1,4\n")
    (folder / "far.csv").write_text("arrival_s,output_tokens\n0,8\n")
    if "arrivals" in stream:
        stream = stream | {"arrivals": folder / stream["arrivals"]}
    with pytest.raises(ConfigError, match=message) as raised:
        prepare(config(folder, stream, **more))
    assert "\n" not in str(raised.value)
