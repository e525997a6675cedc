"""The report: complete, the same twice, safe with hostile names, and right where it says a number."""

import html
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.decision import REASONS
from moesim.errors import InputError
from moesim.report import write_report
from moesim.report.rows import read_results
from moesim.result import SCHEMA
from moesim.token_time import TokenTime


def row(policy="lru", cache=0.25, tpot_ms=80.0, **more):
    """A run of made-up numbers that hang together: the named sum adds up, misses have reasons."""
    tpot = tpot_ms * 1e6
    parts = {"attention": 5e6, "experts": 6e6, "host": 1e6, "idle": 0.0}
    values = dict.fromkeys(SCHEMA.names)
    values |= {field.name: 0 for field in SCHEMA if pa.types.is_integer(field.type)}
    values |= {field.name: 0.0 for field in SCHEMA if pa.types.is_floating(field.type)}
    values |= {field.name: "" for field in SCHEMA if pa.types.is_string(field.type)}
    values |= {
        "grid": "policies",
        "policy": policy,
        "model": "qwen3-30b-a3b",
        "hardware": "rtx-a6000",
        "trace": "recorded",
        "device": "simulated",
        "engine": "yalis",
        "cache_fraction": cache,
        "per_layer": False,
        "context_tokens": 1024,
        "batch_tokens": 1,
        "link_bytes_per_s": 25_700_000_000,
        "lossless": True,
        "bound": False,
        "open_loop": False,
        "synthetic": False,
        "feasible": True,
        "slots": 1536,
        "vram_bytes": 20_000_000_000,
        "tokens_measured": 128,
        "tpot_mean_ns": tpot,
        "tpot_fast_ns": tpot * 0.95,
        "tpot_slow_ns": tpot * 1.05,
        "tokens_per_s": 1e9 / tpot,
        **{f"tpot_{name}_ns": value for name, value in parts.items()},
        "tpot_exposed_copy_ns": tpot - sum(parts.values()),
        "link_floor_ns": tpot * 0.8,
        "hits": 100,
        "misses": 50,
        **{f"misses_{reason}": 10 for reason in REASONS},
        "hit_rate": 2 / 3,
        "resident_hit_rate": 2 / 3,
        "weight_executed": 1.0,
        "bytes_per_token": 2e9,
        "ttft_mean_ns": 1e9,
        "kernel_times": "roofline",
        "configuration": json.dumps({"warmup_tokens": 64}),
    }
    return values | more


def sweep_of(folder, rows, **more):
    folder.mkdir(exist_ok=True)
    (folder / "timelines").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "results.parquet")
    (folder / "sweep.json").write_text(json.dumps({"name": "test", "title": "A test", "published": []} | more))
    return folder


def full_sweep():
    rows = [
        row(policy, cache, tpot_ms=150 - place - 100 * cache, lossless=lossless, bound=bound, weight_executed=weight)
        for place, (policy, lossless, bound, weight) in enumerate(
            [
                ("lru", True, False, 1.0),
                ("least-stale[key=cyclic]", True, False, 1.0),
                ("speculate-and-execute", False, False, 0.93),
                ("belady", True, True, 1.0),
            ]
        )
        for cache in (0.0, 0.25, 0.5)
    ]
    rows.append(row("on-demand", 0.0, 160.0))
    rows.append(row("all-resident", 1.0, 12.0, bound=True, feasible=False))
    rows += [
        row(
            "lru", cache, 90 - 50 * cache, grid="bandwidth", link_bytes_per_s=link, tpot_fast_ns=None, tpot_slow_ns=None
        )
        for cache in (0.25, 0.5)
        for link in (12_000_000_000, 25_700_000_000)
    ]
    rows += [row("on-demand", 0.0, 158.0 + i, grid="contexts", context_tokens=1024 * 4**i) for i in range(2)]
    return rows


FACT = {
    "grid": "contexts",
    "policy": "on-demand",
    "context_tokens": 1024,
    "cache_fraction": 0.0,
    "tpot_ns": 160_000_000,
    "source": "a paper",
}
TIMELINE = {
    "name": "lru",
    "policy": "lru",
    "cache_fraction": 0.25,
    "context_tokens": 1024,
    "layers": [1, 2],
    "start_ns": 0,
    "end_ns": 100,
    "slices": [
        {"track": "link", "name": "copy", "start_ns": 5, "end_ns": 60, "layer": 1, "expert": 3},
        {"track": "compute", "name": "experts", "start_ns": 60, "end_ns": 90, "layer": 1, "expert": -1},
        {"track": "host", "name": "read back", "start_ns": 0, "end_ns": 5, "layer": -1, "expert": -1},
    ],
}


@pytest.fixture
def folder(tmp_path):
    made = sweep_of(tmp_path / "out", full_sweep(), published=[FACT])
    (made / "timelines" / "lru.json").write_text(json.dumps(TIMELINE))
    return made


def text_of(page):
    """What a reader sees, roughly: tags and embedded pictures removed."""
    source = re.sub(r"<(style|script).*?</\1>", " ", page.read_text(), flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", " ", source))


def test_every_panel_is_there_and_nothing_is_fetched(folder):
    page = write_report(folder)
    source = page.read_text()
    assert source.count("data:image/svg+xml;base64,") == 6
    assert not re.search(r"(src|href)=\"(?!data:)", source)
    assert sorted(file.stem for file in (folder / "figures").glob("*.png")) == [
        "bandwidth",
        "cache-size",
        "context",
        "misses",
        "time-by-policy",
        "timeline",
    ]


def test_the_same_results_give_the_same_bytes(folder):
    first = write_report(folder).read_bytes()
    pictures = {file.name: file.read_bytes() for file in (folder / "figures").iterdir()}
    assert write_report(folder).read_bytes() == first
    assert {file.name: file.read_bytes() for file in (folder / "figures").iterdir()} == pictures


def test_the_headline_names_the_fastest_lossless_policy_that_could_be_deployed(folder):
    text = text_of(write_report(folder))
    # least-stale at 50 %: 150 - 1 - 50; belady and speculation are faster, but a bound and lossy
    assert (
        "Least-Stale (key: cyclic) with 50 % of the experts on the GPU is the fastest lossless choice: 99.0 ms" in text
    )
    assert "(94.0 ms to 104.0 ms over the hardware's ranges)" in text
    assert "Without a cache, on demand, a token takes 160.0 ms: 1.6 times as long." in text
    assert "speculate and execute at 50 %, takes 98.0 ms (1 % less) and executes 93 % of the router's weight" in text


def test_a_published_time_stands_beside_ours(folder):
    text = re.sub(r"\s+", " ", text_of(write_report(folder)))
    assert "on demand 1,024 160.0 ms 158.0 ms 150.1 – 165.9 ms inside -2.0 ms (-1.2%)" in text


def test_a_published_split_stands_beside_ours(tmp_path):
    fact = {**FACT, "copy_share": [0.84, 0.88], "compute_share": [0.08, 0.13]}
    text = re.sub(r"\s+", " ", text_of(write_report(sweep_of(tmp_path / "out", full_sweep(), published=[fact]))))
    # of 158 ms: 5 of dense work and 6 of experts are compute, 1 is the host's, the rest is waiting for copies
    assert "92.4 % (published 84 – 88 %) 7 % (published 8 – 13 %)" in text


def test_a_published_time_may_be_of_contexts_as_recorded(tmp_path):
    rows = [row("on-demand", 0.0, 158.0, context_tokens=c, grid="contexts") for c in (None, 1024, 4096)]
    text = text_of(write_report(sweep_of(tmp_path / "out", rows, published=[{**FACT, "context_tokens": None}, FACT])))
    assert "as recorded" in text


def test_an_infeasible_run_never_wins(tmp_path):
    rows = [row("lru", 0.25, 80.0), row("fifo", 0.5, 40.0, feasible=False)]
    text = text_of(write_report(sweep_of(tmp_path / "out", rows)))
    assert "LRU with 25 %" in text
    assert "does not fit" in text


def test_hostile_names_are_text(tmp_path):
    evil = "<script>alert(1)</script>"
    rows = [row("lru", 0.25), row("fifo", 0.5, trace=evil, grid=evil, model=evil)]
    page = write_report(sweep_of(tmp_path / "out", rows, title=evil))
    source = page.read_text()
    assert source.count("<script>") == 1  # our own
    assert evil in text_of(page)


@pytest.mark.parametrize(
    ("rows", "figures"),
    [
        ([row()], set()),
        ([row("lru", 0.25), row("fifo", 0.25)], {"time-by-policy", "misses"}),
        ([row("lru", 0.25), row("lru", 0.5)], {"time-by-policy", "misses", "cache-size"}),
        ([row("on-demand", 0.0, context_tokens=c, grid="c") for c in (1, 2)], {"context"}),
        ([row("lru", 0.25, context_tokens=None), row("fifo", 0.25, context_tokens=None)], {"time-by-policy", "misses"}),
        ([row("lru", 0.25, hardware=card) for card in ("rtx-a6000", "unheard-of")], set()),
    ],
)
def test_a_panel_without_data_is_left_out(tmp_path, rows, figures):
    out = sweep_of(tmp_path / "out", rows)
    page = write_report(out)
    assert {file.stem for file in (out / "figures").glob("*.svg")} == figures
    assert f"All {len(rows)} runs" in text_of(page)


def test_the_stacked_bars_are_the_named_sum():
    """The report stacks what token_time defines, no more and no less."""
    from moesim.report.words import CLASSES

    assert set(CLASSES) == {name.removesuffix("_ns") for name in TokenTime.__dataclass_fields__}


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign", "no-description"])
def test_a_folder_without_results_is_one_line(tmp_path, damage):
    out = sweep_of(tmp_path / "out", [row()])
    if damage == "missing":
        (out / "results.parquet").unlink()
    elif damage == "torn":
        (out / "results.parquet").write_bytes((out / "results.parquet").read_bytes()[:-100])
    elif damage == "foreign":
        pq.write_table(pa.table({"a": [1]}), out / "results.parquet")
    else:
        (out / "sweep.json").unlink()
    with pytest.raises(InputError) as refused:
        read_results(out)
    assert str(out) in str(refused.value)
    assert "\n" not in str(refused.value)
