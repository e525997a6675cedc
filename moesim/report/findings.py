"""What the results say, in words and numbers: computed from the rows, never written by hand."""

from dataclasses import dataclass

from moesim.report.rows import Results, Row, deployable, fastest
from moesim.report.words import CLASSES, increase, milliseconds, percent, policy_words


@dataclass(frozen=True)
class Comparison:
    """A published time beside ours."""

    policy: str
    context_tokens: int | None
    published_ns: float
    published_copies: tuple[float, float] | None
    """The published range of the share of the time that copies take."""
    published_compute: tuple[float, float] | None
    row: Row
    source: str

    @property
    def difference_ns(self) -> float:
        """Ours less theirs."""
        return float(self.row["tpot_mean_ns"]) - self.published_ns

    @property
    def inside(self) -> bool | None:
        """Whether the published time lies in our interval; None without an interval."""
        fast, slow = self.row["tpot_fast_ns"], self.row["tpot_slow_ns"]
        return None if fast is None or slow is None else bool(fast <= self.published_ns <= slow)


def comparisons(results: Results) -> list[Comparison]:
    """Every published time that a run stands beside."""
    found = []
    for fact in results.sweep.get("published", []):
        for row in results.grid(fact["grid"]):
            same = all(row[key] == fact[key] for key in ("policy", "context_tokens", "cache_fraction"))
            if same:
                found.append(Comparison(
                    fact["policy"], fact["context_tokens"], fact["tpot_ns"], fact.get("copy_share"),
                    fact.get("compute_share"), row, fact["source"],
                ))
    return found


def headline(results: Results) -> list[str]:
    """The answer in a few sentences."""
    rows = results.main_grid
    best = fastest([row for row in rows if row["lossless"] and deployable(row)])
    if best is None:
        return ["No lossless policy of this sweep fits into the GPU's memory."]
    sentences = [
        f"{_sentence_start(policy_words(best['policy']))} with {percent(best['cache_fraction'])} of the experts "
        f"on the GPU is the fastest lossless choice{_load(best)}: "
        f"{milliseconds(best['tpot_mean_ns'])} per token{_interval(best)}, "
        f"{best['tokens_per_s']:.1f} tokens/s, {best['vram_bytes'] / 1e9:.1f} GB of GPU memory."
    ]
    demand = next((row for row in rows if row["policy"] == "on-demand"), None)
    if demand is not None and demand is not best:
        sentences.append(
            f"Without a cache, on demand, a token takes {milliseconds(demand['tpot_mean_ns'])}: "
            f"{demand['tpot_mean_ns'] / best['tpot_mean_ns']:.1f} times as long."
        )
    largest = max(CLASSES, key=lambda name: float(best[f"tpot_{name}_ns"]))
    sentences.append(
        f"Most of the best run's time is {CLASSES[largest][0]}: {milliseconds(best[f'tpot_{largest}_ns'])} "
        f"({percent(round(best[f'tpot_{largest}_ns'] / best['tpot_mean_ns'], 3))})."
    )
    bounds = []
    optimum = next((r for r in rows if r["policy"] == "belady" and r["cache_fraction"] == best["cache_fraction"]), None)
    if optimum is not None:
        bounds.append(f"offline-optimal eviction at the same size {milliseconds(optimum['tpot_mean_ns'])}")
    resident = next((row for row in rows if row["policy"] == "all-resident"), None)
    if resident is not None:
        note = "" if resident["feasible"] else ", which this card cannot hold"
        bounds.append(f"all experts resident {milliseconds(resident['tpot_mean_ns'])}{note}")
    if bounds:
        sentences.append(f"Bounds: {'; '.join(bounds)}.")
    lossy = fastest([row for row in rows if not row["lossless"] and deployable(row)])
    if lossy is not None:
        gain = 1 - lossy["tpot_mean_ns"] / best["tpot_mean_ns"]
        comparison = f"{percent(round(abs(gain), 3))} {'less' if gain > 0 else 'more'}"
        cost = (
            "an unknown share of the router's weight"
            if lossy["weight_executed"] is None
            else f"{percent(round(lossy['weight_executed'], 3))} of the router's weight"
        )
        measured = results.cost(lossy)
        if measured is not None:
            whose = " (of another model of this shape)" if results.is_another_model(lossy["trace"]) else ""
            cost += f" at {increase(measured.value)} perplexity{whose}"
        sentences.append(
            f"The fastest lossy choice, {policy_words(lossy['policy'])} at {percent(lossy['cache_fraction'])}, takes "
            f"{milliseconds(lossy['tpot_mean_ns'])} ({comparison}) and executes {cost}"
            f"{', predicted from true states (open loop)' if lossy['open_loop'] else ''}."
        )
        sentences += _clearly_cheaper(results, lossy)
    return sentences


def _clearly_cheaper(results: Results, lossy: Row) -> list[str]:
    """The fastest lossy choice whose cost lies below that of the fastest one, intervals apart; none, none said."""
    cost = results.cost(lossy)
    if cost is None:
        return []
    costs = {id(row): results.cost(row) for row in results.main_grid if not row["lossless"] and deployable(row)}
    cheaper = [
        row for row in results.main_grid if (found := costs.get(id(row))) is not None and found.high < cost.low
    ]
    best = fastest(cheaper)
    if best is None:
        return []
    found = costs[id(best)]
    assert found is not None, "only those with a cost were compared"
    return [
        f"The fastest that costs clearly less, {policy_words(best['policy'])} at {percent(best['cache_fraction'])}, "
        f"takes {milliseconds(best['tpot_mean_ns'])} at {increase(found.value)}."
    ]


def _load(row: Row) -> str:
    if not row["arrived_per_s"]:
        return ""
    return f" for requests that come at {row['arrived_per_s']:.2g} a second, up to {row['max_batch']} at once"


def _interval(row: Row) -> str:
    if row["tpot_fast_ns"] is None or row["tpot_slow_ns"] is None:
        return ""
    return f" ({milliseconds(row['tpot_fast_ns'])} to {milliseconds(row['tpot_slow_ns'])} over the hardware's ranges)"


def _sentence_start(text: str) -> str:
    return text[:1].upper() + text[1:]
