"""The shipped claims can be read and planned, and docs/published.md is about exactly these claims."""

import re
from pathlib import Path

import pytest

from moesim.catalogue import names
from moesim.published.page import counts, number
from moesim.published.reproduce import load_asked
from moesim.published.system import Claim

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "published.md").read_text()


@pytest.fixture(scope="module")
def shipped():
    return load_asked(None)


def test_the_page_holds_every_claim_and_no_other(shipped):
    ids = {f"{name}-{claim.id}" for name, (_, system) in shipped.systems.items() for claim in system.claims}
    assert set(re.findall(r'<a id="([^"]+)"', PAGE)) == ids


def test_the_page_gives_what_was_published(shipped):
    rows = {found[1]: found[2] for found in re.finditer(r'<a id="([^"]+)"></a>(.*)', PAGE)}
    for name, (_, system) in shipped.systems.items():
        for claim in system.claims:
            row = rows[f"{name}-{claim.id}"]
            assert row.startswith(" ".join(claim.says.split()))
            shown = claim.as_published or (number(claim, claim.published) if isinstance(claim.published, float) else "")
            assert shown in row
            if claim.missing is not None:
                assert " ".join(claim.missing.split()) in row


def test_the_page_counts_its_rows():
    said = dict.fromkeys(("agree", "contradict", "cannot be tested"), 0)
    for row in re.findall(r'<a id=.*', PAGE):
        verdict = row.rstrip(" |").rpartition("| ")[2].partition(":")[0]
        said[verdict] += 1
    assert f"| **all** | {' | '.join(f'**{count}**' for count in said.values())} |" in PAGE


def test_every_contradiction_has_its_reason(shipped):
    contradicted = {found[1] for found in re.finditer(r'<a id="([^"]+)".*\| contradict \|', PAGE)}
    for name, (_, system) in shipped.systems.items():
        for claim in system.claims:
            if f"{name}-{claim.id}" in contradicted:
                assert claim.why, f"{name}: {claim.id}: say why, or that it is not known"


def test_every_system_is_known_by_name():
    assert "speculating-experts" in names("published")


def test_numbers_are_written_as_their_kind_is_read():
    def written(kind, value, **more):
        return number(Claim.model_construct(kind=kind, **more), value)

    assert written("share", 0.885) == "88.5 %"
    assert written("ratio", 0.9091) == "0.909×"
    assert written("ratio", 85.0) == "85×"
    assert written("count", 384.0) == "384"
    assert written("count", 158_900_000.0, metric="tpot_mean_ns") == "158.9 ms"
    assert counts([]) == {}
