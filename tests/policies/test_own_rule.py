"""A rule in the user's own file, and the tutorial that writes one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.capacity import Capacity
from moesim.cli import app
from moesim.decide import Decider, run_without_clock
from moesim.errors import ConfigError
from moesim.events import steps
from moesim.policies.composition import files, parse
from moesim.run_config import RunConfig, file_hash, run_hash
from moesim.trace import Trace

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "traces" / "reference-48x128.safetensors"
NEWEST_FIRST = """
from moesim.policies.roles import Evict

class NewestFirst(Evict):
    '''Throws out what came last.'''
    def __init__(self, step: int = 1):
        self.clock, self.step = 0, step
    def on_hit(self, expert):
        self.clock -= self.step
        return self.clock
    on_insert = on_hit
"""


def own(tmp_path, text, name="mine.py"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_the_tutorial_is_twenty_lines_and_beats_lru(tmp_path):
    text = (ROOT / "docs" / "writing-a-policy.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    file = own(tmp_path, code)
    trace = Trace.load(SHIPPED).slice(0, 192)

    def misses(policy):
        decider = Decider(parse(policy), 48, 128, Capacity(1536), largest_event=128)
        return sum(each.misses.total() for each in run_without_clock(decider, steps(trace)))

    assert misses(f"{file}:Fading") < 0.97 * misses("lru")


def test_it_may_stand_alone_or_in_a_composition(tmp_path):
    file = own(tmp_path, NEWEST_FIRST)
    alone, composed = parse(f"{file}:NewestFirst[step=2]"), parse(f"prefetch-and-refetch[evict={file}:NewestFirst]")
    assert alone.spec.summary == "Throws out what came last."
    assert alone.new_evictions(1)[0].step == 2
    assert type(composed.new_evictions(1)[0]) is type(alone.new_evictions(1)[0])
    assert files(f"{file}:NewestFirst")["policy"] == file
    assert files(f"lru[evict={file}:NewestFirst]")["evict"] == file


def test_another_text_is_another_run(tmp_path):
    hashes = set()
    for number, text in enumerate((NEWEST_FIRST, NEWEST_FIRST + "# changed\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        own(folder, text)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            file_hash.cache_clear()
            for policy in ("mine.py:NewestFirst", "lru[evict=mine.py:NewestFirst]"):
                hashes.add(run_hash(RunConfig(trace=SHIPPED, model="olmoe-1b-7b", hardware="h200", policy=policy)))
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "Mine", "no such file"),
        ("x = 1", "Mine", "it has no subclass of Route, Prefetch, OnMiss, Evict"),
        (NEWEST_FIRST, "NewestFist", "did you mean NewestFirst"),
        ("import nowhere_to_be_found", "Mine", r"mine.py:1: ModuleNotFoundError"),
        ("\n\ndef f(:\n", "Mine", r"mine.py:3: SyntaxError"),
        ("\nraise SystemError('no')\n", "Mine", r"mine.py:2: SystemError: no"),
        (NEWEST_FIRST.replace("on_insert = on_hit", ""), "NewestFirst", "it lacks on_insert"),
        (NEWEST_FIRST.replace("step: int = 1", "step"), "NewestFirst", "parameter 'step' needs a default"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, text, name, message):
    file = tmp_path / "mine.py" if text is None else own(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        parse(f"{file}:{name}")


def test_a_rule_has_one_role(tmp_path):
    file = own(tmp_path, NEWEST_FIRST)
    with pytest.raises(ConfigError, match="a rule of the role evict, not route"):
        parse(f"lru[route={file}:NewestFirst]")


def test_show_explains_a_policy(tmp_path):
    shown = CliRunner().invoke(app, ["policies", "show", "lcp[rho=0.5]", "--json"])
    assert shown.exit_code == 0
    policy = json.loads(shown.stdout)
    evict = next(rule for rule in policy["rules"] if rule["role"] == "evict")
    assert evict["parameters"] == {"rho": 0.5, "omega": 128.0, "counts": "ever"}
    assert evict["given"] == ["rho"]
    assert "μ·ρ^(ν/ω)" in evict["text"]
    assert policy["source"].startswith("MoEpic")
    assert policy["open_rules"]
    plain = CliRunner().invoke(app, ["policies", "show", "lcp[rho=0.5]"]).stdout
    assert "rho = 0.5" in plain
    assert "counts = \"ever\"  (default)" in plain
    file = own(tmp_path, NEWEST_FIRST)
    assert "Throws out what came last." in CliRunner().invoke(app, ["policies", "show", f"{file}:NewestFirst"]).stdout
