"""Who is ranked where: made-up rows whose order is plain to see."""

import pytest

from moesim.errors import ConfigError
from moesim.published.tournament import read_rows, tables


def row(policy, milliseconds, cache=0.25, **more):
    return {
        "policy": policy, "hardware": "card", "cache_fraction": cache, "tpot_mean_ns": milliseconds * 1e6,
        "lossless": True, "bound": False, "feasible": True, "weight_executed": 1.0,
    } | more


def test_lossless_and_lossy_are_ranked_apart_and_neither_bounds_nor_what_does_not_fit():
    written = list(tables([
        row("slow", 30), row("fast", 10), row("no-cache", 20, cache=0.0), row("too-big", 1, feasible=False),
        row("lossy", 2, lossless=False, weight_executed=0.9), row("other-size", 3, cache=0.5),
        row("belady", 5, bound=True), row("all-resident", 4, cache=1.0, bound=True),
    ]))
    quarter = [line for line in written if line.startswith("| card | 25 %")]
    assert quarter == [
        "| card | 25 % | `fast` 10.0 | `no-cache` 20.0 | `slow` 30.0 | – | 5.0 | 4.0 |",
        "| card | 25 % | `lossy` 2.0, 90.0 % | – | – | – | 5.0 | 4.0 |",
    ]
    assert not any("too-big" in line for line in written)


def test_a_folder_without_results_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="moesim sweep writes it"):
        read_rows(tmp_path)
