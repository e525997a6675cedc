"""Who competes, who is ranked where, and what is written: made-up rows with a plain order, and a tiny tournament."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from moesim.catalogue import names
from moesim.cli import app
from moesim.errors import ConfigError
from moesim.policies.composition import split_call
from moesim.published.standings import slower_than_best, standings
from moesim.published.tournament import LeftOut, load_tournament, round_of
from moesim.published.tournament_figure import draw
from moesim.published.traces import load_sources

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "tournament.yaml"


def row(policy, milliseconds, cache=0.25, **more):
    return {
        "policy": policy, "trace": "t", "hardware": "h100", "cache_fraction": cache, "tpot_mean_ns": milliseconds * 1e6,
        "lossless": True, "bound": False, "feasible": True, "weight_executed": 1.0, "copies_only": True,
        "reads_ahead": False,
    } | more


ROWS = [
    row("slow", 30), row("fast", 10, copies_only=False), row("no-cache", 20, cache=0.0),
    row("too-big", 1, feasible=False), row("lossy[predictor=residual]", 2, lossless=False),
    row("other-size", 3, cache=0.5), row("belady", 5, bound=True),
    row("all-resident", 4, cache=1.0, bound=True, feasible=False),
]


def named(rows):
    return [row["policy"] for row in rows]


def test_lossless_and_lossy_are_ranked_apart_and_neither_bounds_nor_what_does_not_fit():
    quarter, half = standings(ROWS)
    assert (quarter.cache, half.cache) == (0.25, 0.5)
    assert named(quarter.lossless) == ["fast", "no-cache", "slow"]
    assert named(quarter.copying) == ["no-cache", "slow"]
    assert named(quarter.lossy) == ["lossy[predictor=residual]"]
    assert quarter.optimal_eviction["tpot_mean_ns"] == 5e6
    assert quarter.all_resident["tpot_mean_ns"] == half.all_resident["tpot_mean_ns"] == 4e6
    assert (named(half.lossless), half.optimal_eviction) == (["other-size", "no-cache"], None)


def test_a_system_is_measured_by_the_best_lossless_one_of_each_place():
    ratios = slower_than_best(standings(ROWS))
    assert ratios["slow", "t"] == 3.0
    assert ratios["no-cache", "t"] == pytest.approx((20 / 10 + 20 / 3) / 2)
    assert ratios["lossy", "t"] == 0.2, "where predictions come from is no part of the name"


def test_a_panel_for_each_card_and_a_line_for_each_kind():
    figure = draw(standings([*ROWS, *(each | {"hardware": "rtx-4090"} for each in ROWS)]), {"t": "A model"})
    assert [axes.get_title() for axes in figure.axes] == ["H100 80 GB (SXM)", "GeForce RTX 4090 24 GB"]
    drawn = {line.get_color(): list(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_ydata())}
    assert drawn["#117733"] == [10, 3]
    assert drawn["#332288"] == [20, 3]
    assert drawn["#cc6677"] == [2]


def test_every_policy_that_ships_takes_part():
    tournament = load_tournament(SHIPPED)
    entered = set()
    for grid in tournament.grids.values():
        policies = grid.axes["policy"]
        entered |= {split_call(each)[0] for each in ([policies] if isinstance(policies, str) else policies)}
    assert entered == set(names("policies"))


def written(folder, traces, grids):
    path = folder / "small.yaml"
    path.write_text(
        f"title: Small\nsources: {ROOT}/configs/published-traces.yaml\ntraces: {traces}\n"
        "foresight: synthetic[recall=0.5]\n"
        "axes: {hardware: h100, engine: graph, warmup_tokens: 2, measured_tokens: 3, interval: false, cache: 25%}\n"
        f"grids: {grids}\n"
    )
    return path


def entered(path, name):
    tournament = load_tournament(path)
    source = load_sources(ROOT / "configs" / "published-traces.yaml").traces[name]
    return round_of(tournament, path, name, source, ROOT / "traces" / f"{name}.safetensors")


def test_who_needs_what_a_trace_lacks_is_left_out_by_name(tmp_path):
    path = written(
        tmp_path, "{reference-16x64: {title: A}, reference-16x64-scores: {title: B}}",
        "{a: {policy: [lru, prefetch-and-refetch]}, b: {needs: scores, policy: [max-rank]},"
        " c: {policy: adapmoe, cache: [5%, 25%]}, d: {needs: batches, policy: expert-replication}}",
    )
    plain, scored = entered(path, "reference-16x64"), entered(path, "reference-16x64-scores")
    single = LeftOut(
        "expert-replication", "the trace decodes one sequence at a time, of whose next token nothing is foreseen", ()
    )
    too_small = LeftOut("adapmoe", "policy: best-split of 51 slots: 16 layers need 8 each at least", (0.05,))
    assert [run.policy for run in plain.sweep.runs] == ["lru", "prefetch-and-refetch", "adapmoe"]
    no_scores = LeftOut("max-rank", "the trace has not every router probability", ())
    assert plain.left_out == (no_scores, too_small, single)
    assert [run.policy for run in scored.sweep.runs] == [
        "lru", "prefetch-and-refetch[predictor=synthetic[recall=0.5]]", "max-rank", "adapmoe",
    ]
    assert scored.left_out == (too_small, single)


@pytest.mark.parametrize(("traces", "found"), [
    ("{reference-16x46: {title: A}}", "traces.reference-16x46: unknown trace"),
    ("{olmoe: {title: A, grids: [b]}}", "traces.olmoe: unknown grid 'b'"),
])
def test_what_is_not_known_is_one_line(tmp_path, traces, found):
    with pytest.raises(ConfigError, match=found):
        load_tournament(written(tmp_path, traces, "{a: {policy: lru}}"))


def test_the_command_writes_tables_figure_and_results_and_names_what_is_not_at_hand(tmp_path):
    path = written(
        tmp_path, "{reference-16x64-scores: {title: A model}, olmoe: {title: OLMoE}}",
        "{a: {policy: [lru, specmd-drop]}, b: {policy: [belady, all-resident]}}",
    )
    done = CliRunner().invoke(app, ["tournament", str(path), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "Not at hand (--traces FOLDER): olmoe" in done.output
    rows = {each["policy"]: each for each in pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()}
    drop = rows["specmd-drop[predictor=synthetic[recall=0.5]]"]
    assert (drop["reads_ahead"], rows["lru"]["reads_ahead"]) == (True, False)
    tables = (tmp_path / "out" / "tables.md").read_text()
    lru, belady, resident = (f"{rows[each]['tpot_mean_ns'] / 1e6:.1f}" for each in ("lru", "belady", "all-resident"))
    assert f"| H100 80 GB (SXM) | 25 % | `lru` {lru} | – | – | `lru` {lru} | {belady} | {resident} |" in tables
    time, weight = drop["tpot_mean_ns"] / 1e6, 100 * drop["weight_executed"]
    assert rf"| H100 80 GB (SXM) | 25 % | `specmd-drop`\* {time:.1f}, {weight:.1f} % | – | – |" in tables
    assert (tmp_path / "out" / "best.png").exists()
