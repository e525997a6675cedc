"""`python -m traces.recipes.realism FILE...` prints what traces/README.md says about the routing of traces.

Whatever trace file it is given, recorded here or imported from elsewhere, it computes the same statistics.
"""

import sys
from pathlib import Path

import numpy as np

from moesim import trace_statistics as statistics
from moesim.trace import Trace


def summary(traces: list[Trace]) -> str:
    """One row per trace: means over layers."""
    rows = [
        "| trace | overlap with previous token / shuffled | ratio | LRU at 25 % | busiest 10 % |",
        "|---|---|---|---|---|",
    ]
    for trace in traces:
        found = statistics.routing(np.asarray(trace.experts), trace.n_experts)
        rows.append(
            f"| {trace.metadata.name} | {found.overlap:.3f} / {found.shuffled:.3f} | "
            f"{found.overlap / found.shuffled:.2f} | {found.lru_quarter:.2f} | {found.busiest_tenth:.2f} |"
        )
    return "\n".join(rows)


def perplexities(traces: list[Trace]) -> str:
    """Perplexity per token of held-out text, a column per kind; only for traces whose provenance tells it."""
    told = {t.metadata.name: t.metadata.provenance["training"] for t in traces if "training" in t.metadata.provenance}
    rows: list[str] = []
    for name, training in told.items():
        assert isinstance(training, dict)
        perplexity = training["perplexity"]
        assert isinstance(perplexity, dict)
        if not rows:
            rows = [f"| trace | {' | '.join(perplexity)} |", f"|---|{'---|' * len(perplexity)}"]
        rows.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in perplexity.values())} |")
    return "\n".join(rows)


def by_layer(trace: Trace) -> str:
    """One row per layer: overlap, LRU, skew, and the recall at top-k of every predictor."""
    experts, n_experts = np.asarray(trace.experts), trace.n_experts
    columns = {
        "overlap": statistics.overlap_with_previous_token(experts),
        "shuffled": statistics.shuffled_overlap(experts),
        "LRU at 25 %": statistics.lru_hit_rate(experts, n_experts, n_experts // 4),
        "busiest 10 %": statistics.busiest_share(experts, n_experts),
    }
    for name, prediction in trace.predicted.items():
        columns[f"recall, {name}"] = statistics.prediction_recall(experts, np.asarray(prediction.ranking))
    rows = [f"| layer | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for index, number in enumerate(trace.metadata.moe_layers):
        cells = (f"{column[index]:.2f}" if np.isfinite(column[index]) else "–" for column in columns.values())
        rows.append(f"| {number} | {' | '.join(cells)} |")
    means = (f"**{np.nanmean(column):.3f}**" for column in columns.values())
    rows.append(f"| **mean** | {' | '.join(means)} |")
    return "\n".join(rows)


def main(paths: list[str]) -> None:
    """Print the three tables."""
    traces = [Trace.load(Path(path)) for path in paths]
    print(summary(traces), perplexities(traces), sep="\n\n")
    for trace in traces:
        print(f"\n{trace.metadata.name}\n\n{by_layer(trace)}")


if __name__ == "__main__":
    main(sys.argv[1:])
