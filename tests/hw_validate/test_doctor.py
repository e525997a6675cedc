"""What the doctor says before anything runs."""

from hw_validate.doctor import RESERVE_BYTES, examine
from hw_validate.grid import Validation, config_path
from moesim.model import ModelSpec
from tests.hw_validate.cells_for_tests import MACHINE

QWEN = ModelSpec.load("qwen3-30b-a3b")
LAYER_BYTES = QWEN.experts * QWEN.expert_bytes


def told(free_host_bytes, machine=MACHINE):
    findings = examine(machine, Validation.load(config_path("h200")), free_host_bytes)
    return {each.what: each for each in findings}


def test_enough_memory_is_well():
    found = told(48 * LAYER_BYTES + RESERVE_BYTES)[QWEN.name]
    assert found.well
    assert found.told == "58 GB of experts in pinned memory"


def test_too_little_memory_says_how_many_layers_fit():
    found = told(48 * LAYER_BYTES + RESERVE_BYTES - 1)[QWEN.name]
    assert not found.well
    assert "47 of 48 layers fit (`layers: 47`" in found.told
    assert told(0)[QWEN.name].told.endswith("0 of 48 layers fit")


def test_a_model_of_which_the_first_layers_are_run_needs_no_more():
    validation = Validation.load(config_path("h200"))
    cut = [each.model_copy(update={"layers": 24}) if each.model == QWEN.name else each for each in validation.models]
    findings = examine(MACHINE, validation.model_copy(update={"models": cut}), 24 * LAYER_BYTES + RESERVE_BYTES)
    assert next(each for each in findings if each.what == QWEN.name).well


def test_every_model_of_the_validation_is_asked_about():
    assert {"olmoe-1b-7b", "qwen3-30b-a3b", "mixtral-8x7b"} <= told(10**12).keys()


def test_a_rehearsal_without_a_gpu_asks_for_none():
    rehearsal = told(10**12, MACHINE.model_copy(update={"device": "cpu", "gpu": "", "gpu_memory_bytes": 0}))
    assert all(each.well for each in rehearsal.values())
    without = told(10**12, MACHINE.model_copy(update={"gpu": ""}))
    assert not without["GPU"].well
