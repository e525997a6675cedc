"""The protocol between the replay loop and a machine: streams, events, copies, kernels and one host thread.

The loop enqueues and goes on; it blocks only in `synchronize`, a generator that yields whatever the machine waits
by (SimPy events, or nothing at all). What was enqueued on one stream runs in that order. Instants are integer
nanoseconds since the start of the run and are filled in as the work completes.
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from moesim.model import Kernel

KernelClass = Literal["attention", "experts"]
"""All dense work counts as attention."""


@dataclass(slots=True, eq=False)
class Event:
    """A point in a stream. `issued_ns` is set when the event stands for copies: when the first was enqueued."""

    completed_ns: int | None = None
    issued_ns: int | None = None
    signal: Any = None
    waited: bool = False
    """The compute stream waits for it already, so later kernels need not."""
    foreseen: bool = False
    """The copies are a prefetch's."""


@dataclass(slots=True, eq=False)
class KernelRun:
    """One launch of a kernel group, and when it ran.

    `ready_ns` is when stream and host would have let it start, had it not waited for events; `busy_ns` is less
    than `end_ns - start_ns` when the host launched its kernels more slowly than they ran.
    """

    kind: KernelClass
    waits: Sequence[Event] = ()
    ready_ns: int = 0
    start_ns: int = 0
    end_ns: int = 0
    busy_ns: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel group ready to launch: duration and launches are looked up once, not per token."""

    name: str
    kind: KernelClass
    layer: int
    kernel: Kernel
    duration_ns: int
    launches: int


StreamType = TypeVar("StreamType")
"""A device's own kind of stream: an in-order queue of work on the GPU."""


class Device(Protocol[StreamType]):
    """One GPU, its host thread and the link between them."""

    compute: StreamType
    copies: StreamType
    prefetches: StreamType
    """For copies of what is foreseen: a queue of its own where the engine keeps two, else `copies` itself."""

    runs: list[KernelRun]
    """Kernels in order of launch, since the loop last cleared it at the end of a step."""
    blocked: list[tuple[int, int]]
    """When the host was blocked, since the loop last cleared it at the end of a step."""

    @property
    def link_busy_ns(self) -> int:
        """How long the copy engine has been at work."""

    @property
    def cancelled_bytes(self) -> int:
        """Of copies that were enqueued and taken back, so far."""

    def prepare(self, name: str, kind: KernelClass, layer: int, kernel: Kernel, launches: int) -> Prepared:
        """Make a kernel group ready to launch."""

    def decided(self) -> None:
        """The host knows the next event's decision and turns to it; the loop's own work per event is spent here."""

    def idle_until(self, instant_ns: int) -> int:
        """The host has nothing to do before an instant, which is to come; returns when it goes on."""

    def launch(self, stream: StreamType, prepared: Prepared, slots: Sequence[int] = ()) -> KernelRun:
        """Enqueue kernels that read the experts in `slots`."""

    def copy(self, stream: StreamType, expert: int, slot: int, size_bytes: int) -> int:
        """Enqueue the copy of one expert into a slot; returns when the host had enqueued its first piece."""

    def record(self, stream: StreamType, issued_ns: int | None = None) -> Event:
        """Enqueue a record: the event completes when everything enqueued before it has."""

    def wait(self, stream: StreamType, event: Event) -> None:
        """Make what is enqueued from now on wait for an event of another stream."""

    def read_back(self, event: Event) -> Generator[Any, None, int]:
        """Block the host until the event has completed and its few bytes are on the host; returns that instant."""


class DeviceWithDisk(Device[StreamType], Protocol[StreamType]):
    """A machine that reads experts from disk into host memory, on an in-order stream of its own."""

    disk: StreamType

    @property
    def disk_busy_ns(self) -> int:
        """How long the disk has been reading: reads count whole once they have begun."""

    def read(self, expert: int, size_bytes: int) -> int:
        """Enqueue a read; returns when. Another thread does it, so the loop spends no time."""


class DeviceWithCopyQueues(Device[StreamType], Protocol[StreamType]):
    """A machine whose copies wait in software, from where they can be taken back."""

    def drop_unstarted(self, experts: Collection[int]) -> Generator[Any, None, list[int]]:
        """Take back those copies of `experts` in `prefetches` that have not begun by now; returns whose they were."""

    def hasten(self, experts: Collection[int]) -> None:
        """Bring a copy of one of `experts` that has begun in `prefetches` to its end before any other begins."""


class DeviceWithCpu(Device[StreamType], Protocol[StreamType]):
    """A machine whose CPU executes experts too, on an in-order stream of its own."""

    cpu: StreamType
    results: StreamType
    """The way of the CPU's results to the GPU, so that no copy of an expert waits behind a result still to come."""
    cpu_runs: list[tuple[int, int]]
    """When experts ran on the CPU, since the loop last cleared it at the end of a step."""

    def bring_activations(self, size_bytes: int) -> None:
        """Enqueue the way of a layer's input to the CPU, behind the ids that were read back."""

    def execute(self, expert: int, kernel: Kernel) -> None:
        """Enqueue one expert on the CPU."""

    def return_result(self, size_bytes: int) -> int:
        """Enqueue the copy of a result to the GPU; returns when the host had enqueued it."""
