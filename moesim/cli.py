"""The command line: every command, thin. What a command needs is imported when it runs, so that help is quick."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import moesim
from moesim.cli_fit import app as fit_app
from moesim.cli_policies import app as policies_app
from moesim.cli_quality import EXAMPLES, quality
from moesim.cli_record import EXAMPLES as RECORD_EXAMPLES
from moesim.cli_record import record
from moesim.cli_reproduce import EXAMPLES as REPRODUCE_EXAMPLES
from moesim.cli_reproduce import reproduce
from moesim.cli_serve import EXAMPLES as SERVE_EXAMPLES
from moesim.cli_serve import serve
from moesim.cli_tournament import EXAMPLES as TOURNAMENT_EXAMPLES
from moesim.cli_tournament import tournament
from moesim.cli_trace import app as trace_app
from moesim.command_line import examples, overrides, run_app
from moesim.errors import ConfigError

app = typer.Typer(
    name="moesim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Simulate Mixture-of-Experts inference with experts offloaded to host memory.",
)
app.add_typer(trace_app, name="trace")
app.add_typer(policies_app, name="policies")
app.add_typer(fit_app, name="fit")
app.command(epilog=EXAMPLES)(quality)
app.command(epilog=examples(*RECORD_EXAMPLES))(record)
app.command(epilog=examples(*SERVE_EXAMPLES))(serve)
app.command(epilog=examples(*REPRODUCE_EXAMPLES))(reproduce)
app.command(epilog=examples(*TOURNAMENT_EXAMPLES))(tournament)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moesim {moesim.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Simulate Mixture-of-Experts inference with experts offloaded to host memory."""


@app.command(epilog=examples(
    "moesim sweep configs/a6000.yaml",
    "moesim sweep configs/a6000.yaml --out /tmp/a6000 --workers 8",
    "moesim sweep configs/a6000.yaml --cluster tcp://head-node:8786    # an existing Dask cluster: docs/sweeps.md",
    "Ctrl-C, then the same command again: continues and recomputes nothing.",
))
def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A sweep (.yaml).", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write; by default runs/<name>.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Processes; by default one per CPU.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on the workers of a Dask scheduler: tcp://HOST:PORT, or its file."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Run a grid of policies, cache sizes and machines, and leave results.parquet and report.html."""
    from moesim.config import Sweep
    from moesim.progress import no_progress, shown_progress
    from moesim.report import write_report
    from moesim.summary import print_sweep
    from moesim.sweep import run_sweep
    from moesim.workers import usable_cpus

    if cluster is not None and workers is not None:
        raise ConfigError(f"--workers {workers}: a cluster has workers of its own; give --cluster or --workers")
    started = time.monotonic()
    asked = Sweep.load(config)
    folder = out or Path("runs") / asked.config.name
    with no_progress() if quiet else shown_progress("runs") as progress:
        rows = run_sweep(asked, folder, workers or usable_cpus(), progress, cluster)
    page = write_report(folder)
    if not quiet:
        print_sweep(rows, page, time.monotonic() - started)


@app.command(epilog=examples(
    "moesim run --policy lru --cache 25%",
    "moesim run --policy 'least-stale[key=cyclic]' --cache 12.5% --hardware rtx-4090 --json",
    "moesim run --policy mine.py:MyEvict --cache 25%    # a rule of your own: docs/writing-a-policy.md",
    "moesim run --policy speculate-and-execute --set link_bytes_per_s=50e9 --timeline token.json",
))
def run(
    policy: Annotated[str, typer.Option(help="A policy, with parameters in brackets (moesim policies).")],
    trace: Annotated[
        Path, typer.Option(help="A recorded trace (.safetensors).")
    ] = Path("traces/reference-48x128.safetensors"),
    model: Annotated[
        str, typer.Option(help="A model's name, or a YAML or Hugging Face config.json.")
    ] = "qwen3-30b-a3b",
    hardware: Annotated[str, typer.Option(help="A machine's name, or a YAML file.")] = "rtx-a6000",
    engine: Annotated[str, typer.Option(help="An engine's name, or a YAML file.")] = "yalis",
    cache: Annotated[str, typer.Option(help="Share of all experts that have a slot on the GPU.")] = "0%",
    host_cache: Annotated[
        str, typer.Option(help="Share of all experts that host memory holds; the rest is on disk.")
    ] = "100%",
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Split the slots evenly over the layers.")] = False,
    context: Annotated[
        int | None, typer.Option(help="KV length of every decode step; by default the trace's own.")
    ] = None,
    warmup: Annotated[int, typer.Option(help="Decode tokens that are run and not counted.")] = 64,
    measured: Annotated[
        int | None, typer.Option(help="Decode tokens that are counted; by default all that follow.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIGURE=VALUE", help="Set a figure of the hardware; can be given again."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, fast (closed form) or simulated (SimPy); all give the same times.")
    ] = "auto",
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a timeline for ui.perfetto.dev.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run one configuration and print its time as a named sum."""
    from pydantic import ValidationError

    from moesim.config import cache_fraction, host_cache_fraction
    from moesim.run import simulate
    from moesim.run_config import RunConfig
    from moesim.summary import print_run

    try:
        fraction = cache_fraction(cache)
    except ConfigError as error:
        raise ConfigError(f"--cache {cache}: {error}") from None
    try:
        host_fraction = host_cache_fraction(host_cache)
    except ConfigError as error:
        raise ConfigError(f"--host-cache {host_cache}: {error}") from None
    try:
        config = RunConfig(
            trace=trace, model=model, hardware=hardware, engine=engine, policy=policy, cache_fraction=fraction,
            host_cache_fraction=host_fraction,
            per_layer=per_layer, context_tokens=context, warmup_tokens=warmup, measured_tokens=measured,
            hardware_overrides=overrides(settings or []), device=device,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        flag = str(found["loc"][0]).removesuffix("_tokens")
        raise ConfigError(f"--{flag} {found['input']}: {found['msg']}") from None
    result = simulate(config, timeline=timeline is not None)
    if timeline is not None:
        assert result.timeline is not None, "it was asked for"
        result.timeline.save_perfetto(timeline)
    if as_json:
        typer.echo(json.dumps(result.row(), indent=2))
    else:
        print_run(result.row())


@app.command(epilog=examples(
    "moesim curve traces/reference-48x128.safetensors",
    "moesim curve traces/reference-48x128.safetensors --decode --plot curve.svg",
    "moesim curve trace.safetensors --json | jq '.misses.lru[100]'    # misses with 100 slots",
))
def curve(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace (.safetensors).", show_default=False)],
    decode: Annotated[bool, typer.Option("--decode", help="Leave the steps of prefill out.")] = False,
    optimum: Annotated[
        bool, typer.Option(help="Also the offline optimum, which takes most of the time.")
    ] = True,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw curves, reuse distances, working sets (.svg, .png, .pdf).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the misses of LRU and of the offline optimum at every cache size in one pass."""
    from moesim.curve import curves_of
    from moesim.curve.words import plain_values, print_curves
    from moesim.progress import shown_progress
    from moesim.trace import Trace

    if plot is not None:
        from moesim.curve.figure import check_format, save_figure

        check_format(plot)
    recording = Trace.load(trace)
    recording.validate()
    with shown_progress("steps") as progress:
        curves = curves_of(recording, decode_only=decode, optimum=optimum, progress=progress)
    if plot is not None:
        save_figure(curves, plot)
    if as_json:
        typer.echo(json.dumps(plain_values(curves)))
    else:
        print_curves(curves)


@app.command(epilog=examples("moesim report runs/a6000"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output of a sweep.", show_default=False)],
) -> None:
    """Make a sweep's report again from its results."""
    from moesim.report import write_report

    typer.echo(write_report(folder))


@app.command(epilog=examples("moesim models"))
def models(as_json: Json = False) -> None:
    """List the models that are known by name."""
    from moesim.catalogue import names
    from moesim.model import ModelSpec

    specs = [ModelSpec.load(name) for name in names("models")]
    _list(
        [
            {
                "name": spec.name,
                "layers": len(spec.moe_layers),
                "experts": spec.experts,
                "top_k": spec.top_k,
                "expert_bytes": spec.expert_bytes,
                "parameters": spec.weights,
                "source": spec.source,
            }
            for spec in specs
        ],
        as_json,
    )


@app.command("hardware", epilog=examples("moesim hardware"))
def list_hardware(as_json: Json = False) -> None:
    """List the machines that are known by name."""
    from moesim.catalogue import names
    from moesim.hardware import HardwareSpec

    specs = [HardwareSpec.load(name) for name in names("hardware")]
    _list(
        [
            {
                "name": spec.name,
                "title": spec.title,
                "link": spec.link,
                "link_bytes_per_s": spec.figures["link_bytes_per_s"].value,
                "memory_bytes": spec.figures["memory_bytes"].value,
            }
            for spec in specs
        ],
        as_json,
    )


def _list(rows: list[dict[str, Any]], as_json: bool) -> None:
    from moesim.summary import print_table

    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_table(rows)


def main() -> None:
    """Entry point: what a user can mend is one line and exit code 2."""
    run_app(app, "interrupted; the same command continues where it was")


if __name__ == "__main__":
    main()
