"""The comparison report: right where it says a number, complete, partial where little was measured, safe."""

import base64
import html
import json
import re

import pytest

from hw_validate.measurement import Limit, Limits, Telemetry, Timelines
from hw_validate.report import write_comparison_report
from hw_validate.report.limits import met
from moesim.errors import InputError

from .cells_for_tests import folder_of, limits, measurement, steps, token, world


def text_of(page):
    """What a reader sees, roughly: tags and embedded pictures removed, white space made one."""
    source = re.sub(r"<(style|script).*?</\1>", " ", page.read_text(), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", source)))


def section(text, title):
    """The text from a heading to the end of the page, cut where the next heading may start."""
    return text[text.index(title) :]


def cells():
    """Measured 100 ms on demand; every other time is a round share of it."""
    return [
        measurement("on-demand", 0.0, 100, 102, seed=1),
        measurement("speculate-and-execute", 0.0, 90, 90.9, seed=2),
        measurement("prefetch-and-refetch", 0.0, 97, 97.97, seed=3),
        measurement("lru", 0.25, 60, 54.6, seed=4),  # −9 %
        measurement("least-stale", 0.25, 66, 53.46, seed=5),  # −19 %, and before LRU instead of behind it
        measurement("lru", 0.5, 40, 40.4, seed=6),
        measurement("on-demand", 0.0, 1200, 1224, phase="prefill", count=4, seed=7),
        measurement("lru", 0.25, 110, 111.1, model="mixtral-8x7b", count=32, seed=8),
    ]


def timelines():
    names = [each.cell.name for each in cells()[:2]]
    return Timelines(slices=[
        each for name in names for each in (*token(name, "measured"), *token(name, "simulated", scale=1.5))
    ])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = folder_of(tmp_path_factory.mktemp("report") / "out", cells(), limits=limits(), timelines=timelines())
    write_comparison_report(out)
    return out


@pytest.fixture(scope="module")
def text(folder):
    return text_of(folder / "report.html")


def test_the_error_stands_at_the_top(text):
    # absolute errors: 2, 1, 1, 9, 19, 1, 2, 1 per cent; the middle two are 1 and 2
    assert "Over 8 cells on NVIDIA H200, the simulated time per step is off by 1.50 % in the median and 19.00 %" in text
    assert "median at most 3 %: met; worst at most 8 %: not met. Worst: OLMoE-1B-7B, Least-Stale, cache 25 %" in text


def test_errors_by_model_and_setting(text):
    assert "all cells 8 1.50 % 19.00 %" in text
    assert "Mixtral-8x7B 1 1.00 % 1.00 %" in text
    assert "prefill 1 2.00 % 2.00 % OLMoE-1B-7B, on demand, cache 0 %, prefill" in text


def test_a_cell_is_one_line_with_both_worlds(text):
    line = section(text, "OLMoE-1B-7B: 16 layers, trace olmoe-1b-7b trace; decode, batch 1")
    found = re.search(r"LRU 25 % 60\.00 \(([\d.]+)–([\d.]+)\) 54\.60 −9\.0 % 3,000 1,000 0\.074 identical –", line)
    assert found
    low, high = map(float, found.groups())
    # 128 steps with 1 % scatter: 1.96 · 0.6 / √128 = 0.10 on each side
    assert low == pytest.approx(59.90, abs=0.03)
    assert high == pytest.approx(60.10, abs=0.03)


def test_what_was_shortened_or_synthetic_is_said_with_the_model(text):
    assert "Mixtral-8x7B: 8 of its 32 layers, synthetic trace mixtral-8x7b trace" in text


def test_the_order_of_policies_in_words_and_table(text):
    # pairs: three at cache 0, one at 25 %
    assert "Of 4 pairs of policies, the measurement orders 4; the intervals of the other 0 overlap." in text
    assert "The simulation orders 3 of the 4 as the machine does." in text
    assert re.search(r"OLMoE-1B-7B 25 % decode, batch 1 LRU 60\.00 \([^)]*\) 54\.60 Least-Stale 66\.00", text)


def test_the_claim_on_this_card(text):
    assert (
        "OLMoE-1B-7B, decode, batch 1: speculation saves 10 %, inside the published range, and is lossy; an LRU cache "
        "of 25 % / 50 % of the experts saves 40 % / 60 % and is lossless."
    ) in text
    # simulated: 1 − 90.9 / 102 and 1 − 54.6 / 102
    assert "speculate and execute 0 % 90.0 ms 10 % 10.9 % lossy" in text
    assert "LRU 25 % 60.0 ms 40 % 46.5 % lossless" in text


def test_limits_and_the_plain_engine(text):
    assert "large-copy peak 54.1 GB/s 55 GB/s 0.984 at least 0.95 met" in text
    assert "+ compute 71.4 ms 66.0 ms 1.082 at most 1.05 not met" in text
    assert "on demand 82.9 ms 70.0 ms 1.18 times as fast" in text


@pytest.mark.parametrize(
    ("unit", "ratio", "target", "result"),
    [
        ("ns", 1.05, 1.05, True),
        ("ns", 1.06, 1.05, False),
        ("bytes/s", 0.95, 0.95, True),
        ("bytes/s", 0.94, 0.95, False),
    ],
)
def test_rates_must_reach_and_times_not_exceed(unit, ratio, target, result):
    assert met(Limit(name="", what="", measured=1, bound=1, unit=unit, ratio=ratio, target=target)) is result


def test_decisions_and_outputs(text):
    assert "Identical in both worlds: 8 of 8 cells. 160,000 decisions and 131,072 executed experts" in text
    # lossless OLMoE decode cells agree; prefill and Mixtral have only one each
    assert "5 cells in 1 groups of one model, trace and setting were compared, and 1 of the 1 groups agree" in text


def test_power_and_energy(text):
    # 250 W for 60 ms of one token: 15 J
    assert "LRU 25 % decode, batch 1 250 W 15 J 1,900 MHz 1,800 MHz no" in text
    assert "None of the 8 runs that the driver watched was throttled." in text


def test_the_machine_is_described(text):
    for fact in ("NVIDIA H200, 139 GiB", "580.1, 13.0, 2.11", "PCIe 5 x16", "Xeon, 16 used", "4, 32, 128 measured"):
        assert fact in text


def test_nothing_reads_like_an_identifier(text):
    # names of files and of traces are data
    prose = re.sub(r"timeline\.perfetto\.json|(olmoe-1b-7b|mixtral-8x7b) trace", "", text)
    assert not re.search(r"\w_\w", prose)
    for name in ("on-demand", "speculate-and-execute", "olmoe-1b", "exposed_copy", "Not measured", "None,"):
        assert name not in prose


def test_every_figure_is_there_and_nothing_is_fetched(folder):
    source = (folder / "report.html").read_text()
    names = {file.stem for file in (folder / "figures").glob("*.svg")}
    assert names == {file.stem for file in (folder / "figures").glob("*.png")}
    assert names == {
        "parity", "energy", "token-1", "token-2", "time-olmoe-1b-7b-decode-batch1", "time-olmoe-1b-7b-prefill-batch1",
        "time-mixtral-8x7b-decode-batch1",
    }
    embedded = {base64.b64decode(each) for each in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", source)}
    assert embedded == {file.read_bytes() for file in (folder / "figures").glob("*.svg")}
    assert not re.search(r"(src|href)=\"(?!data:)", source)


def test_the_same_token_in_both_worlds(text):
    # a layer: 60 + 20 + 4 · 180 + 50 µs = 850 µs; three of the six, from attention to experts
    assert "OLMoE-1B-7B, on demand, cache 0 %, decode, batch 1, layers 1 to 3: measured 2.55 ms, simulated 3.83" in text


def test_both_worlds_share_one_perfetto_file(folder):
    events = json.loads((folder / "timeline.perfetto.json").read_bytes())["traceEvents"]
    worlds = {each["args"]["name"]: each["pid"] for each in events if each["name"] == "process_name"}
    assert set(worlds) == {"measured", "simulated"}
    slices = [each for each in events if each["ph"] == "X"]
    begins = {
        world: [each["ts"] for each in slices if each["pid"] == pid and "cache 0 %" in each["cat"]]
        for world, pid in worlds.items()
    }
    # the longer token of the first cell takes 6 · 0.85 · 1.5 ms, then comes a gap of 1 ms
    assert begins["measured"] == begins["simulated"] == [0, pytest.approx(8650)]
    first = [each for each in slices if each["cat"] == "attention" and each["args"]["layer"] == 0]
    assert sorted(each["dur"] for each in first) == [60, 60, 90, 90]


def test_the_same_measurements_give_the_same_bytes(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    (folder / "figures" / "of-an-earlier-report.svg").write_text("")
    write_comparison_report(folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def bare_cell(**more):
    return measurement(
        measured=world(steps(40), classes=False), simulated=world(steps(41), classes=False),
        telemetry=Telemetry(samples=0), **more,
    )


def test_one_bare_cell_says_what_was_not_measured(tmp_path):
    out = folder_of(tmp_path / "out", [bare_cell()])
    page = write_comparison_report(out)
    text = text_of(page)
    # time classes, order, token, limits, plain engine, claim, power
    assert text.count("Not measured.") == 7
    assert {file.stem for file in (out / "figures").iterdir()} == {"parity"}
    assert not (out / "timeline.perfetto.json").exists()
    assert "2.50 % in the median" in text


def test_throttled_runs_are_marked(tmp_path):
    hot = measurement("lru", telemetry=Telemetry(samples=3, power_mean_w=700.0, throttle_reasons=["sw_power_cap"]))
    text = text_of(write_comparison_report(folder_of(tmp_path / "out", [hot, measurement("fifo", 0.5)])))
    assert "1 of 2 runs were throttled; they are marked." in text
    assert "identical throttled: power cap" in text
    assert "1 of the 2 runs that the driver watched were throttled (power cap)" in text
    assert "700 W not measured not measured not measured power cap" in text


def test_differences_are_counted_and_named(tmp_path):
    measured = [
        measurement("lru", simulated=world([41_000_000] * 128, hits=2998, misses=1002)),
        measurement("fifo", decisions_different=7, executed_differently=3, timing_dependent=True),
        measurement("lfu", output_sha256="other"),
        measurement("least-stale", executed=0, decisions_compared=0),
    ]
    text = text_of(write_comparison_report(folder_of(tmp_path / "out", measured)))
    assert "3,000, simulated 2,998 1,000, simulated 1,002" in text
    assert "7 of 20,000 decisions and 3 of 16,384 executions differ" in text
    assert "Identical in both worlds: 1 of 3 cells." in text
    assert "not compared" in text
    assert "OLMoE-1B-7B, decode, batch 1 LFU at 25 %" in text


def test_a_rehearsal_on_the_processor_is_no_measurement_of_a_gpu(tmp_path):
    out = folder_of(tmp_path / "out", [bare_cell()])
    facts = json.loads((out / "machine.json").read_bytes())
    (out / "machine.json").write_text(json.dumps(facts | {"device": "cpu", "gpu": "", "driver": "", "cuda": ""}))
    text = text_of(write_comparison_report(out))
    assert "Simulated and measured: Xeon" in text
    assert "rehearsal without a GPU" in text


def test_hostile_names_are_text(tmp_path):
    evil = "../<script>alert(1)</script>"
    cell = measurement("<b>bold</b>", 0.25)
    cell = cell.model_copy(update={"cell": cell.cell.model_copy(update={"trace": evil, "model": evil})})
    reason = measurement("lru", 0.5, telemetry=Telemetry(samples=1, throttle_reasons=[evil]))
    slices = [*token(evil, "measured"), *token(evil, "simulated")]
    bad = Limits(
        limits=[Limit(name=evil, what=evil, measured=1, bound=1, unit="ns", ratio=1, target=1)],
        baselines={evil: 1.0}, engine={evil: 1.0}, baseline_model=evil,
    )
    out = folder_of(tmp_path / "out", [], limits=bad, timelines=Timelines(slices=slices))
    for name, each in (("a", cell), ("b", reason)):
        (out / "cells" / f"{name}.json").write_text(each.model_dump_json())
    page = write_comparison_report(out)
    source = page.read_text()
    assert "<script" not in source
    assert "<b>" not in source
    assert evil in html.unescape(source)
    assert {file.parent.name for file in tmp_path.rglob("*.svg")} == {"figures"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    out = folder_of(tmp_path / "out", [bare_cell()])
    (out / "figures").write_text("in the way")
    with pytest.raises(InputError) as refused:
        write_comparison_report(out)
    assert str(out / "figures") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(out.glob(".*"))
