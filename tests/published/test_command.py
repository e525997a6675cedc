"""`moesim reproduce` as it is called."""

import json
import sys

import pytest

from moesim.cli import main


@pytest.fixture
def reproduce(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", "reproduce", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return call


def test_one_system_prints_json_and_writes_the_page_that_was_asked_for(reproduce, tmp_path):
    code, out, _ = reproduce("pre-attention", "--json", "--out", tmp_path / "page.md")
    assert code == 0
    (told,) = json.loads(out)
    assert (told["system"], {claim["verdict"] for claim in told["claims"]}) == ("pre-attention", {"cannot be tested"})
    assert "arXiv 2511.10676" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    (["specmdd"], "unknown system 'specmdd': did you mean specmd?"),
    (["specmd", "--traces", "absent"], "--traces absent: no such folder"),
    (["specmd", "--out", "absent/page.md"], "no folder absent"),
])
def test_what_is_wrong_is_one_line(reproduce, arguments, message):
    code, _, err = reproduce(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
