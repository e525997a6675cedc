"""A paper's file that breaks a rule is refused in one line that names file, line, key, value and rule."""

import pytest

from moesim.errors import ConfigError
from tests.published.papers import PAPER, asked, claim


@pytest.mark.parametrize(("given", "message"), [
    ({"kind": "guess"}, "claims.0.kind = 'guess'"),
    ({"colour": "red"}, "unknown key 'claims.0.colour'"),
    ({"id": "Has Blanks"}, "claims.0.id = 'Has Blanks'"),
    ({"says": None}, "claims.0.says is missing"),
    ({"source": None}, "claims.0.source is missing"),
    ({"published": None}, "published is missing"),
    ({"published": "[5, 4]"}, "published begins above its end"),
    ({"published": "more"}, "a direction is published as less, more or same"),
    ({"kind": "direction", "over": "resident"}, "a direction is published as less, more or same"),
    ({"kind": "ratio"}, "a ratio needs over"),
    ({"over": "resident"}, "a count has no over"),
    ({"tolerance": None}, "tolerance is missing"),
    ({"tolerance": "{relative: 0.1}"}, "claims.0.tolerance.because is missing"),
    ({"tolerance": "{relative: -1, because: no}"}, "claims.0.tolerance.relative = -1"),
    ({"metric": "mises"}, "did you mean misses"),
    ({"metric": "misses / axcesses"}, "did you mean accesses"),
    ({"metric": None}, "claims.0.metric is missing"),
    ({"of": "on-demnd"}, "claims.0.of = on-demnd: unknown run, recall or cost: did you mean on-demand?"),
    ({"kind": "ratio", "over": "nobody"}, "claims.0.over = nobody"),
    ({"kind": "ratio", "over": "foreseen"}, "not the same kind of thing"),
    ({"of": "foreseen"}, "only runs have a metric"),
    ({"traces": "[tyni]"}, "claims.0.traces = tyni: unknown trace: did you mean tiny?"),
    ({"missing": "a trace"}, "a claim with `missing` is not tested"),
    ({"take": "some"}, "claims.0.take = 'some'"),
])
def test_claims(tmp_path, given, message):
    with pytest.raises(ConfigError, match=r"made-up\.yaml") as error:
        asked(tmp_path, claim(**given))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("was", "becomes", "message"), [
    ("policy: on-demand", "policy: on-demnd", "runs.on-demand.policy = on-demnd: unknown policy"),
    ("policy: on-demand", "policy: on-demand, cahce: 1", "runs.on-demand.cahce: unknown key"),
    ("policy: on-demand", "policy: on-demand, model: olmoe-1b-7b", "model comes from the claim"),
    ("hardware: rtx-a6000", "hardware: rtx-a7000", "axes.hardware = rtx-a7000"),
    ("traces: [tiny]", "traces: [tinny]", "traces = tinny: unknown trace"),
    ("traces: [tiny]", "traces: []", "claims.0: traces is missing"),
    ("title: A made-up system", "titel: A made-up system", "unknown key 'titel'"),
    ("foreseen:", "resident:", "share a name"),
])
def test_the_rest_of_the_file(tmp_path, was, becomes, message):
    with pytest.raises(ConfigError, match=r"made-up\.yaml") as error:
        asked(tmp_path, claim(), PAPER.replace(was, becomes))
    assert message in str(error.value)


def test_an_id_stands_once(tmp_path):
    with pytest.raises(ConfigError, match=r"claims\.1\.id = x: given twice"):
        asked(tmp_path, claim() + claim())
