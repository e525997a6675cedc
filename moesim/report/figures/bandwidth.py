"""Which deployable lossless policy wins, over link bandwidth and cache size."""

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from moesim.report.figures.canvas import new_figure, plain
from moesim.report.rows import Results, deployable
from moesim.report.words import gigabytes_per_s, percent, policy_colours, policy_words


def draw(results: Results) -> Figure | None:
    """A map with the winner's TPOT and its lead over the second in each cell."""
    rows = [row for row in results.bandwidth_grid if row["lossless"] and deployable(row)]
    if not rows:
        return None
    links = sorted({row["link_bytes_per_s"] for row in rows})
    caches = sorted({row["cache_fraction"] for row in rows})
    colours = policy_colours(row["policy"] for row in results.rows)
    figure = new_figure(1.6 + 1.45 * len(links), 1.4 + 0.75 * len(caches))
    axes = figure.subplots()
    winners = {}
    for across, link in enumerate(links):
        for up, cache in enumerate(caches):
            cell = sorted(
                (row for row in rows if row["link_bytes_per_s"] == link and row["cache_fraction"] == cache),
                key=lambda row: float(row["tpot_mean_ns"]),
            )
            if not cell:
                continue
            best = cell[0]
            winners[best["policy"]] = colours[best["policy"]]
            axes.add_patch(
                Rectangle((across, up), 1, 1, facecolor=colours[best["policy"]], alpha=0.32, edgecolor="white")
            )
            text = f"{best['tpot_mean_ns'] / 1e6:,.3g} ms"
            if len(cell) > 1:
                lead = 1 - best["tpot_mean_ns"] / cell[1]["tpot_mean_ns"]
                ahead = f"{100 * lead:.1f} % before" if lead >= 0.0005 else "level with"
                text += f"\n{ahead}\n{policy_words(cell[1]['policy'])}"
            axes.text(across + 0.5, up + 0.5, text, ha="center", va="center", fontsize=7.5)
    axes.set_xlim(0, len(links))
    axes.set_ylim(0, len(caches))
    axes.set_xticks([place + 0.5 for place in range(len(links))], [gigabytes_per_s(link) for link in links])
    axes.set_yticks([place + 0.5 for place in range(len(caches))], [percent(cache) for cache in caches])
    axes.set_xlabel("link, host to GPU")
    axes.set_ylabel("experts that have a slot")
    axes.tick_params(length=0)
    plain(axes, None)
    figure.legend(
        [Patch(facecolor=colour, alpha=0.32) for colour in winners.values()],
        [f"{policy_words(policy)} wins" for policy in winners],
        loc="outside upper center",
        ncols=3,
        fontsize=8,
    )
    return figure
