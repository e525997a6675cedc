"""What the simulator needs of the host's CPU and memory, from what was observed: four figures and rows of the table."""

from collections.abc import Mapping, Sequence

from moesim.kernel_table import KernelRow
from moesim.model import ModelSpec
from moesim.quantity import Quantity


def cpu_expert_rows(model: ModelSpec, observations: Mapping[str, Quantity]) -> list[KernelRow]:
    """The times of one model's expert on the CPU as rows of the kernel table. They were measured in bfloat16."""
    start, end = f"cpu_expert_of_{model.name}_", "_tokens_ns"
    return [
        KernelRow(
            kernel="cpu expert", mode="eager", hbm_bytes=2 * model.expert_weights, experts=1,
            tokens=int(name[len(start) : -len(end)]), ns=time.value, low_ns=time.low, high_ns=time.high,
        )
        for name, time in observations.items() if name.startswith(start)
    ]


def cpu_figures(observations: Mapping[str, Quantity], rows: Sequence[KernelRow]) -> dict[str, Quantity]:
    """Memory's capacity, the CPU's rate on the largest expert, and what smaller ones take beyond it.

    The capacity is what copying threads and the link moved at once. How fast the CPU computes no row tells while memory
    bounds them all: that figure stays the base profile's. The floor is given where two sizes of experts were measured.
    """
    beside = {name: each for name, each in observations.items() if name.endswith("_copying_threads_bytes_per_s")}
    link = max(beside, key=lambda name: int(name.split("_")[2]))
    memory = observations["host_memory_under_copies_bytes_per_s"]
    figures = {
        "host_bytes_per_s": Quantity(
            value=memory.value + beside[link].value, low=memory.low + beside[link].low,
            high=memory.high + beside[link].high,
            source=f"what copying threads and the link moved at once: host_memory_under_copies_bytes_per_s and {link}",
        )
    }
    single = sorted((row for row in rows if row.kernel == "cpu expert" and row.tokens == 1), key=lambda r: r.hbm_bytes)
    if not single:
        return figures
    largest = single.pop()
    rate = largest.hbm_bytes * 1e9 / largest.ns
    figures["cpu_bytes_per_s"] = Quantity(
        value=rate, low=largest.hbm_bytes * 1e9 / largest.high_ns, high=largest.hbm_bytes * 1e9 / largest.low_ns,
        source=f"an expert of {largest.hbm_bytes} bytes over its time on the CPU, one token",
    )
    beyond = [(row.low_ns, row.ns, row.high_ns, row.hbm_bytes * 1e9 / rate) for row in single]
    if beyond and all(low > read for low, _, _, read in beyond):
        figures["cpu_expert_floor_ns"] = Quantity(
            value=sum(time - read for _, time, _, read in beyond) / len(beyond),
            low=min(low - read for low, _, _, read in beyond), high=max(high - read for _, _, high, read in beyond),
            source=f"what {len(beyond)} smaller experts take beyond their bytes at that rate, their mean; one token",
        )
    return figures
