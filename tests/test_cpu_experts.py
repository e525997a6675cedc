"""What the loop hands to the CPU, and behind which layer the GPU waits for it: the calls of the device, in order."""

from types import SimpleNamespace

from moesim.cpu_experts import CpuExperts
from moesim.decision import Decision
from moesim.model import ModelSpec


class Calls:
    """A device that only writes down what it is told; an event is named by what its stream was told last."""

    cpu, results, compute = "cpu", "results", "compute"

    def __init__(self):
        self.told = []
        self._last = {}

    def bring_activations(self, size_bytes):
        self.told.append(f"input of {size_bytes}")

    def execute(self, expert, kernel):
        self._last["cpu"] = expert
        self.told.append(f"expert {expert} for {kernel.tokens}")

    def return_result(self, size_bytes):
        self.told.append(f"result of {size_bytes}")
        return 0

    def record(self, stream, issued_ns=None):
        if stream == "results":
            self._last["results"] = f"result up to {self._last['cpu']}"
        return self._last[stream]

    def wait(self, stream, event):
        self.told.append(f"{stream} waits for {event}")

    def since(self):
        told, self.told = self.told, []
        return told


def decision(layer, on_cpu, deferred=()):
    return Decision(layer, [], [], True, True, on_cpu=on_cpu, deferred=deferred)


def test_deferred_experts_run_last_and_are_awaited_one_layer_later_or_in_the_last_layer_at_once():
    device = Calls()
    cpu = CpuExperts(device, ModelSpec.load("olmoe-1b-7b"))
    step = SimpleNamespace(tokens=1)
    cpu.execute(step, decision(0, [1, 2, 3], [3]), None)
    assert device.since() == [
        "input of 4096", "expert 1 for 1", "expert 2 for 1", "results waits for 2", "result of 4096",
        "expert 3 for 1", "results waits for 3", "result of 4096",
    ]
    cpu.join(last=False)
    assert device.since() == ["compute waits for result up to 2"]
    cpu.execute(step, decision(1, [70]), None)
    device.since()
    cpu.join(last=False)
    assert device.since() == ["compute waits for result up to 3", "compute waits for result up to 70"]
    cpu.execute(step, decision(2, [130, 131], [131]), None)
    device.since()
    cpu.join(last=True)
    assert device.since() == ["compute waits for result up to 130", "compute waits for result up to 131"]
    cpu.execute(step, decision(0, []), None)
    cpu.join(last=False)
    assert device.since() == [], "nothing of a token is left behind it"


def test_a_batchs_experts_have_as_many_tokens_as_chose_them():
    device = Calls()
    cpu = CpuExperts(device, ModelSpec.load("olmoe-1b-7b"))
    chosen = {64: 3, 65: 1}
    step = SimpleNamespace(tokens=3, pairs_of=lambda layer, experts, count, predictor: chosen[experts[0]])
    cpu.execute(step, decision(1, [64, 65]), None)
    assert device.since() == [
        "input of 12288", "expert 64 for 3", "expert 65 for 1", "results waits for 65", "result of 12288",
    ]
