"""The command line of the harness, thin. What a command needs is imported when it runs, so that help is quick."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.command_line import examples, run_app

if TYPE_CHECKING:
    from hw_validate.grid import Validation

app = typer.Typer(
    name="hw_validate",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run moesim's replay loop on a real GPU: calibrate the simulator, and state its error.",
)

Device = Annotated[str, typer.Option(help="cuda, or cpu: the whole harness without a GPU, for tests and a first look.")]
Config = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONFIG]", show_default=False,
        help="A validation of configs/ by name, or a .yaml file; by default h200, on the CPU cpu-quick.",
    ),
]

Hardware = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", show_default=False,
        help="The shipped profile of this card (moesim hardware), whose data-sheet peaks a calibration takes over; "
        "by default the validation's.",
    ),
]


def load_validation(path: Path, device: str, hardware: str | None) -> "Validation":
    """The validation, for another card if one is named. Raises ConfigError where there is none of that name."""
    from hw_validate.grid import Validation
    from moesim.errors import ConfigError
    from moesim.hardware import HardwareSpec

    validation = Validation.load(path)
    if hardware is None:
        return validation
    name = HardwareSpec.load(hardware).name
    if device == "cpu":
        raise ConfigError(f"--hardware {hardware}: names a card; with --device cpu none is used")
    return validation.model_copy(update={"hardware": name})


def _default(device: str) -> str:
    """The validation of someone who names none."""
    return "cpu-quick" if device == "cpu" else "h200"


def _tell(line: str) -> None:
    typer.echo(line, err=True)


@app.command(epilog=examples("hw_validate doctor", "hw_validate doctor h200 --json", "hw_validate doctor --device cpu"))
def doctor(
    config: Config = None,
    device: Device = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")] = False,
) -> None:
    """Say what this machine has, and whether it can run a validation."""
    from hw_validate.doctor import check_device, examine
    from hw_validate.grid import Validation, config_path
    from hw_validate.machine import describe
    from hw_validate.storage import available_host_bytes

    check_device(device)
    validation = Validation.load(config_path(config or _default(device)))
    findings = examine(describe(device), validation, available_host_bytes())
    if as_json:
        typer.echo(json.dumps([vars(each) for each in findings], indent=2))
    else:
        for each in findings:
            typer.echo(f"{'ok' if each.well else '!!'}  {each.what:16} {each.told}")
    if not all(each.well for each in findings):
        sys.exit(1)


@app.command(epilog=examples(
    "hw_validate calibrate --hardware rtx-4090 --out my-card.yaml",
    "moesim run --policy lru --cache 25% --hardware my-card.yaml --engine graph",
))
def calibrate(
    config: Config = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The profile to write.")
    ] = Path("profile.yaml"),
    device: Device = "cuda",
    hardware: Hardware = None,
) -> None:
    """Measure this machine with microbenchmarks, and write the profile that the simulator reads."""
    import tempfile

    from hw_validate.doctor import check_device
    from hw_validate.grid import Plan, config_path
    from hw_validate.machine import describe
    from hw_validate.run import calibrate_device

    check_device(device)
    path = config_path(config or _default(device))
    validation = load_validation(path, device, hardware)
    with tempfile.TemporaryDirectory() as folder:
        calibrate_device(validation, Plan(validation, path, Path(folder)), describe(device), _tell, out)
    typer.echo(out)


@app.command(epilog=examples(
    "hw_validate run --quick",
    "hw_validate run h200 --out runs/validation",
    "hw_validate run --hardware h100 --out runs/h100",
    "hw_validate run --quick --device cpu",
    "Ctrl-C, then the same command again: goes on with the next cell.",
))
def run(
    config: Config = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where to write; by default runs/validation-<name>."),
    ] = None,
    device: Device = "cuda",
    hardware: Hardware = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small grid in under two minutes.")] = False,
    measure_only: Annotated[
        bool, typer.Option("--measure-only", help="Stop after measuring; the same command without it goes on.")
    ] = False,
) -> None:
    """Calibrate, measure, simulate, compare, report."""
    from hw_validate.doctor import check_device, examine
    from hw_validate.grid import Plan, config_path
    from hw_validate.harness import Harness
    from hw_validate.machine import describe
    from hw_validate.run import run_validation
    from hw_validate.storage import available_host_bytes

    check_device(device)
    if quick:
        config = "cpu-quick" if device == "cpu" else "h200-quick"
    path = config_path(config or _default(device))
    validation = load_validation(path, device, hardware)
    folder = out or Path("runs") / f"validation-{validation.name}"
    folder.mkdir(parents=True, exist_ok=True)
    machine = describe(device)
    for each in examine(machine, validation, available_host_bytes()):
        _tell(f"{'ok' if each.well else '!!'}  {each.what:16} {each.told}")
    harness = Harness(validation, Plan(validation, path, folder), folder, device, _tell)
    page = run_validation(harness, machine, measure_only=measure_only)
    typer.echo(page or folder)


@app.command(epilog=examples(
    "hw_validate live traces/models/reference-8x16 --policy lru --slots 32 --device cpu",
    "hw_validate live traces/models/reference-8x16 --policy least-stale --slots 16 --prompt 'int main(' --tokens 128",
))
def live(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint's folder.", show_default=False)],
    policy: Annotated[str, typer.Option(help="A policy that reads no predictions (moesim policies).")] = "lru",
    slots: Annotated[int, typer.Option(min=0, help="Slots for experts on the device; 0 keeps nothing.")] = 32,
    prompt: Annotated[str, typer.Option(help="Text that the model goes on with.")] = "The",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens in all, the prompt's included.")] = 64,
    device: Device = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")] = False,
) -> None:
    """Decode with a trained model whose own router decides, and hold it against the same model all resident."""
    from hw_validate.doctor import check_checkpoints, check_device

    check_device(device)
    check_checkpoints()
    import torch
    from transformers.utils import logging

    from hw_validate.live import decode, load_checkpoint
    from moesim.policies.composition import parse
    from moesim.record.checkpoint import load_tokenizer

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    checkpoint, shape = load_checkpoint(model, device, torch.bfloat16 if device == "cuda" else torch.float32)
    tokenizer = load_tokenizer(str(model))
    ids = tokenizer(prompt).input_ids
    everyone = shape.layers * shape.experts
    run = decode(checkpoint, shape, parse(policy), slots, ids, tokens, device)
    resident = decode(checkpoint, shape, parse("all-resident"), everyone, ids, tokens, device)
    told = {
        "text": tokenizer.decode(run.tokens),
        "hit_rate": run.hits / run.accesses,
        "tpot_mean_ns": sum(run.step_ns) / len(run.step_ns),
        "same_outputs_as_all_resident": bool(run.logits.equal(resident.logits)),
    }
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(told["text"])
    same = "the same" if told["same_outputs_as_all_resident"] else "OTHER"
    typer.echo(
        f"{policy}, {slots} of {everyone} slots: {100 * run.hits / run.accesses:.1f} % hits, "
        f"{sum(run.step_ns) / len(run.step_ns) / 1e6:.2f} ms per token, {same} outputs as all resident"
    )


@app.command(epilog=examples(
    "hw_validate run h200 --measure-only --out runs/h200      # on the machine with the GPU",
    "hw_validate compare h200 --out runs/h200                 # anywhere, also when the simulator has changed",
))
def compare(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="The validation that was run: a name, or a .yaml file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where it was measured.", show_default=False)],
    hardware: Hardware = None,
) -> None:
    """Simulate the measured cells from their profile and write the report; needs no GPU."""
    from hw_validate.grid import Plan, config_path
    from hw_validate.harness import Harness
    from hw_validate.measurement import MachineFacts, load
    from hw_validate.run import compare_worlds

    path = config_path(config)
    device = load(out / "machine.json", MachineFacts).device
    validation = load_validation(path, device, hardware)
    typer.echo(compare_worlds(Harness(validation, Plan(validation, path, out), out, device, _tell)))


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
