"""How things are called and coloured for people: one name, one colour, one unit, in every figure and table."""

from collections.abc import Iterable

from moesim.policies.composition import split_call

CLASSES = {
    "attention": ("attention and other dense work", "#4477aa"),
    "experts": ("experts", "#66ccee"),
    "exposed_copy": ("waiting for copies", "#ee6677"),
    "host": ("host", "#ccbb44"),
    "idle": ("idle", "#bbbbbb"),
}
"""The named sum, in the order in which it is stacked."""

REASONS = {
    "compulsory": ("first use ever", "#bbbbbb"),
    "prefetch": ("not foreseen", "#ccbb44"),
    "collision": ("evicted earlier in the same pass", "#aa3377"),
    "policy": ("the optimum would have hit", "#ee6677"),
    "capacity": ("the optimum misses too", "#4477aa"),
}

# Paul Tol's muted scheme, which colour-blind readers can tell apart.
COLOURS = ("#332288", "#cc6677", "#117733", "#ddaa33", "#44aa99", "#aa4499", "#999933", "#882255", "#66aadd", "#777777")
KNOWN = (
    "lru",
    "speculate-and-execute",
    "prefetch-and-refetch",
    "on-demand",
    "least-stale",
    "resident-execute",
    "fifo",
    "lfu",
)
BOUND_COLOUR = "#555555"


def policy_words(policy: str) -> str:
    """`least-stale[key=cyclic]` as "least-stale (key: cyclic)"."""
    name, arguments = split_call(policy)
    words = {
        "on-demand": "on demand",
        "speculate-and-execute": "speculate and execute",
        "prefetch-and-refetch": "prefetch and refetch",
        "resident-execute": "resident execute",
        "all-resident": "all resident",
        "lru": "LRU",
        "lfu": "LFU",
        "fifo": "FIFO",
        "belady": "Belady",
        "least-stale": "Least-Stale",
    }.get(name, name)
    if not arguments:
        return words
    inside = ", ".join(key if value == "true" else f"{key}: {value}" for key, value in arguments.items())
    return f"{words} ({inside})"


def policy_colours(policies: Iterable[str]) -> dict[str, str]:
    """A colour for each policy: fixed for the common ones, the rest in order of appearance."""
    colours: dict[str, str] = {}
    spare = [colour for number, colour in enumerate(COLOURS) if number >= len(KNOWN)] + list(COLOURS)
    for policy in dict.fromkeys(policies):
        name, arguments = split_call(policy)
        if name in ("belady", "all-resident"):
            colours[policy] = BOUND_COLOUR
        elif name in KNOWN and not arguments:
            colours[policy] = COLOURS[KNOWN.index(name)]
        else:
            colours[policy] = spare[len(colours) % len(spare)]
    return colours


def percent(fraction: float) -> str:
    """0.125 as "12.5 %"."""
    return f"{100 * fraction:.3g} %"


def increase(fraction: float) -> str:
    """0.0123 as "+1.2 %", with as many digits as make sense."""
    return f"{100 * fraction:+.1f} %" if abs(fraction) >= 0.01 else f"{100 * fraction:+.2f} %"


def milliseconds(ns: float) -> str:
    """Nanoseconds as milliseconds with as many digits as make sense."""
    value = ns / 1e6
    return f"{value:,.1f} ms" if abs(value) >= 10 else f"{value:.2f} ms"


def gigabytes_per_s(bytes_per_s: float) -> str:
    """A bandwidth."""
    return f"{bytes_per_s / 1e9:.4g} GB/s"
