"""Claims come out as they must: by counting, against the exact numbers of runs that need no simulator to foresee."""

import json

import pytest

from moesim.errors import ConfigError
from moesim.published.page import as_data, page
from moesim.published.reproduce import reproduce
from moesim.trace import Trace
from tests.published.papers import ACCESSES, asked, claim


def outcome(folder, text, recordings=None):
    """The only claim's verdict and its outcomes."""
    (result,) = reproduce(asked(folder, text), recordings, 1, lambda done, total: None)
    (tested,) = result.tested
    return tested.verdict, tested.outcomes


@pytest.mark.parametrize(("given", "verdict"), [
    ({}, "agree"),
    ({"published": ACCESSES - 1}, "contradict"),
    ({"published": ACCESSES - 1, "tolerance": "{absolute: 1, because: one}"}, "agree"),
    ({"published": ACCESSES - 2, "tolerance": "{absolute: 1, because: one}"}, "contradict"),
    ({"published": f"[1, {ACCESSES}]"}, "agree"),
    ({"published": f"[1, {ACCESSES - 1}]"}, "contradict"),
    ({"published": f"[{ACCESSES + 1}, 10000]"}, "contradict"),
    ({"of": "resident", "metric": "hits"}, "agree"),
    ({"kind": "share", "metric": "misses / accesses", "published": 1}, "agree"),
    ({"kind": "ratio", "metric": "hits", "of": "on-demand", "over": "resident", "published": 0}, "agree"),
    ({"kind": "ratio", "metric": "accesses", "over": "resident", "published": 1}, "agree"),
    ({"kind": "direction", "metric": "tpot_mean_ns", "over": "resident", "published": "more"}, "agree"),
    ({"kind": "direction", "metric": "tpot_mean_ns", "over": "resident", "published": "less"}, "contradict"),
    ({"kind": "direction", "metric": "tpot_mean_ns", "over": "resident", "published": "same"}, "contradict"),
    ({"kind": "direction", "metric": "accesses", "over": "resident", "published": "same"}, "agree"),
    ({"kind": "direction", "metric": "accesses", "over": "resident", "published": "more"}, "contradict"),
    ({"kind": "direction", "metric": "accesses", "over": "resident", "published": "less"}, "contradict"),
    ({"kind": "ratio", "metric": "misses", "over": "resident", "published": 1}, "cannot be tested"),  # by nothing
    ({"metric": "ttft_mean_ns"}, "cannot be tested"),  # the trace has no prefill
    ({"traces": "[elsewhere]"}, "cannot be tested"),  # nobody gave the recording
    ({"traces": "[tiny, elsewhere]"}, "agree"),  # one is at hand
])
def test_a_claim_is_judged_by_the_count(tmp_path, given, verdict):
    assert outcome(tmp_path, claim(**given))[0] == verdict


def test_what_is_missing_is_said_and_nothing_runs(tmp_path):
    text = claim(metric=None, of=None, published=None, tolerance=None, missing="a trace of the moon")
    verdict, (only,) = outcome(tmp_path, text)
    assert (verdict, only.value, only.reason) == ("cannot be tested", None, "a trace of the moon")


def test_a_claim_agrees_only_if_it_holds_on_every_trace(tmp_path):
    hits = {name: outcome(tmp_path, claim(of="sizes", metric="hits", take="most", traces=f"[{name}]"))[1][0].value
            for name in ("tiny", "other")}
    assert hits["tiny"] != hits["other"]
    text = claim(of="sizes", metric="hits", take="most", traces="[tiny, other]", published=hits["tiny"])
    verdict, outcomes = outcome(tmp_path, text)
    assert verdict == "contradict"
    assert [each.verdict for each in outcomes] == ["agree", "contradict"]


def test_the_extreme_of_several_sizes(tmp_path):
    misses = {take: outcome(tmp_path, claim(of="sizes", take=take))[1][0].value for take in ("most", "least")}
    assert misses["least"] < misses["most"] < ACCESSES
    with pytest.raises(ConfigError, match="claim x: 3 values: say which to take"):
        outcome(tmp_path, claim(of="sizes"))


def test_recall_is_the_share_of_the_true_experts_that_the_ranking_names(tmp_path):
    text = claim(kind="share", metric=None, of="foreseen", published="[0, 1]")
    value = outcome(tmp_path, text)[1][0].value
    trace = Trace.load(tmp_path / "tiny.safetensors")
    ranking = trace.predicted["residual+default-vectors"].ranking
    by_hand = [
        len(set(map(int, trace.experts[t, layer])) & set(map(int, ranking[t, layer, :2]))) / 2
        for layer in (1, 2) for t in range(trace.tokens)
    ]
    assert value == pytest.approx(sum(by_hand) / len(by_hand))


def test_a_recording_and_a_synthetic_trace_are_made_ready(tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    lines = [[[layer, (token + layer + k) % 8] for layer in range(3) for k in range(2)] for token in range(40)]
    (recordings / "elsewhere.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert outcome(tmp_path, claim(traces="[elsewhere]"), recordings)[0] == "agree"
    assert outcome(tmp_path, claim(traces="[drawn]", published=(128 - 10) * 6))[0] == "agree"


def test_page_and_json_say_the_same(tmp_path):
    text = (
        claim(id="holds") + claim(id="fails", published=7, why="Because seven is few.") +
        claim(id="unknown", metric=None, of=None, published=None, tolerance=None, missing="a trace")
    )
    wanted = asked(tmp_path, text)
    results = reproduce(wanted, None, 1, lambda done, total: None)
    written = page(results, wanted.sources)
    rows = {line.split('made-up-')[1].split('"')[0]: line for line in written.splitlines() if 'id="made-up-' in line}
    assert rows["holds"].endswith(f"| {ACCESSES} | {ACCESSES} (`tiny`) | agree |")
    assert rows["fails"].endswith(f"| 7 | {ACCESSES} (`tiny`) | contradict |")
    assert rows["unknown"].endswith("| – | – | cannot be tested: a trace |")
    assert "Because seven is few." in written
    assert "| **all** | **1** | **1** | **1** |" in written
    told = as_data(results)[0]["claims"]
    assert [each["verdict"] for each in told] == ["agree", "contradict", "cannot be tested"]
