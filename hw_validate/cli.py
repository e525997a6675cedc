"""The command line of the harness, thin. What a command needs is imported when it runs, so that help is quick."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from moesim.command_line import examples, run_app

app = typer.Typer(
    name="hw_validate",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run moesim's replay loop on a real GPU: calibrate the simulator, and state its error.",
)

Device = Annotated[str, typer.Option(help="cuda, or cpu: the whole harness without a GPU, for tests and a first look.")]
Config = Annotated[
    str, typer.Argument(metavar="[CONFIG]", help="A validation of configs/ by name, or a .yaml file.")
]


def _tell(line: str) -> None:
    typer.echo(line, err=True)


@app.command(epilog=examples("hw_validate doctor", "hw_validate doctor h200 --json"))
def doctor(
    config: Config = "h200",
    device: Device = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")] = False,
) -> None:
    """Say what this machine has, and whether it can run a validation."""
    from hw_validate.doctor import check_device, examine
    from hw_validate.grid import Validation, config_path
    from hw_validate.machine import describe
    from hw_validate.storage import available_host_bytes

    check_device(device)
    findings = examine(describe(device), Validation.load(config_path(config)), available_host_bytes())
    if as_json:
        typer.echo(json.dumps([vars(each) for each in findings], indent=2))
    else:
        for each in findings:
            typer.echo(f"{'ok' if each.well else '!!'}  {each.what:16} {each.told}")
    if not all(each.well for each in findings):
        sys.exit(1)


@app.command(epilog=examples(
    "hw_validate calibrate --out my-card.yaml",
    "moesim run --policy lru --cache 25% --hardware my-card.yaml --engine graph",
))
def calibrate(
    config: Config = "h200",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The profile to write.")
    ] = Path("profile.yaml"),
    device: Device = "cuda",
) -> None:
    """Measure this machine with microbenchmarks, and write the profile that the simulator reads."""
    from hw_validate.calibrate.profile import calibrate as measure
    from hw_validate.calibrate.profile import save_profile
    from hw_validate.doctor import check_device
    from hw_validate.grid import Plan, Validation, config_path
    from hw_validate.machine import describe
    from hw_validate.run import shapes_of
    from moesim.hardware import HardwareSpec

    check_device(device)
    import tempfile

    path = config_path(config)
    validation = Validation.load(path)
    with tempfile.TemporaryDirectory() as folder:
        shapes = shapes_of(Plan(validation, path, Path(folder)))
        save_profile(measure(shapes, HardwareSpec.load(validation.hardware), describe(device), tell=_tell), out)
    typer.echo(out)


@app.command(epilog=examples(
    "hw_validate run --quick",
    "hw_validate run h200 --out runs/validation",
    "hw_validate run --quick --device cpu",
    "Ctrl-C, then the same command again: goes on with the next cell.",
))
def run(
    config: Config = "h200",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where to write; by default runs/validation-<name>."),
    ] = None,
    device: Device = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="A small grid in under two minutes.")] = False,
    measure_only: Annotated[
        bool, typer.Option("--measure-only", help="Stop after measuring; the same command without it goes on.")
    ] = False,
) -> None:
    """Calibrate, measure, simulate, compare, report."""
    from hw_validate.doctor import check_device, examine
    from hw_validate.grid import Plan, Validation, config_path
    from hw_validate.machine import describe
    from hw_validate.run import Harness, run_validation
    from hw_validate.storage import available_host_bytes

    check_device(device)
    path = config_path(("cpu-quick" if device == "cpu" else "h200-quick") if quick else config)
    validation = Validation.load(path)
    folder = out or Path("runs") / f"validation-{validation.name}"
    folder.mkdir(parents=True, exist_ok=True)
    machine = describe(device)
    for each in examine(machine, validation, available_host_bytes()):
        _tell(f"{'ok' if each.well else '!!'}  {each.what:16} {each.told}")
    harness = Harness(validation, Plan(validation, path, folder), folder, device, _tell)
    page = run_validation(harness, machine, measure_only=measure_only)
    typer.echo(page or folder)


@app.command(epilog=examples("hw_validate report plots/h200"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output of a validation.", show_default=False)],
) -> None:
    """Make a validation's comparison and report again from its cells."""
    from hw_validate.report import write_comparison_report

    typer.echo(write_comparison_report(folder))


def main() -> None:
    """Entry point: what a user can mend is one line and exit code 2."""
    run_app(app, "interrupted; the same command goes on with the next cell")


if __name__ == "__main__":
    main()
