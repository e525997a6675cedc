"""Speed and its cost in one report: the column, the front, and nothing of either without a measurement."""

import re

import pytest

from moesim.errors import InputError
from moesim.quality.stored import Interval
from moesim.report import write_report
from moesim.report.figures.pareto import front
from moesim.report.rows import read_results
from tests.quality.made_up import measured, quality
from tests.report.test_report import full_sweep, row, sweep_of, text_of


def told(*modes):
    return {"recorded": quality(*modes).model_dump(mode="json")}


def test_a_lossy_policy_has_its_cost_in_its_row(tmp_path):
    costs = told(measured("speculate-and-execute", predictor="residual+default-vectors", increase=(0.05, 0.04, 0.0625)))
    page = write_report(sweep_of(tmp_path / "out", full_sweep(), quality=costs))
    text = re.sub(r"\s+", " ", text_of(page))
    assert text.count("+5.0 % (+4.0 % to +6.2 %)") == 3  # at every cache size: it has no cache of its own
    assert "as it is" in text
    assert "executes 93 % of the router's weight at +5.0 % perplexity." in text
    assert (tmp_path / "out" / "figures" / "pareto.svg").exists()
    assert page.read_text().count("data:image/svg+xml;base64,") == 6 - 1 + 1  # no timeline here, the front besides


def test_what_was_not_measured_is_said(tmp_path):
    costs = told(measured("resident-execute", predictor="residual+default-vectors", cache=0.25))
    rows = [row("lru"), row("resident-execute", 0.25, lossless=False), row("resident-execute", 0.5, lossless=False)]
    text = re.sub(r"\s+", " ", text_of(write_report(sweep_of(tmp_path / "out", rows, quality=costs))))
    assert text.count("not measured") == 1


@pytest.mark.parametrize("costs", [{}, told(measured("drop", predictor="residual", cache=0.25))])
def test_without_a_measurement_nothing_shows(tmp_path, costs):
    page = write_report(sweep_of(tmp_path / "out", full_sweep(), quality=costs))
    assert "perplexity" not in text_of(page)
    assert not (tmp_path / "out" / "figures" / "pareto.svg").exists()


def test_the_front_is_what_nothing_beats():
    def point(name, tpot, cost):
        return {"policy": name, "tpot_mean_ns": tpot}, Interval(value=cost, low=cost, high=cost)

    points = [
        point("slow, lossless", 90, 0.0), point("lossless", 50, 0.0), point("lossy", 30, 0.02), point("bad", 40, 0.05),
        point("fast", 20, 0.3), point("as fast, worse", 20, 0.4), point("luck", 60, -0.01),
    ]
    assert [each["policy"] for each, _ in front(points)] == ["fast", "lossy", "lossless"]


def test_foreign_quality_is_one_line(tmp_path):
    out = sweep_of(tmp_path / "out", full_sweep(), quality={"recorded": {"format": "other"}})
    with pytest.raises(InputError, match="quality is not what"):
        read_results(out)
