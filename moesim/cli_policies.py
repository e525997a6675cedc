"""`moesim policies`: which there are, and what each does."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.command_line import examples

if TYPE_CHECKING:
    from moesim.policies.describe import PolicyText

app = typer.Typer(
    help="List the policies, each with its source; `show` explains one.",
    epilog=examples(
        "moesim policies",
        "moesim policies --json | jq '.[].name'",
        "moesim policies show hobbit",
    ),
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")]


@app.callback(invoke_without_command=True)
def policies(context: typer.Context, as_json: Json = False) -> None:
    """List the policies, each with its source."""
    if context.invoked_subcommand is not None:
        return
    from moesim.policies.composition import known_policies, parse
    from moesim.summary import print_table

    rows = [
        {
            "name": name,
            "lossless": policy.lossless,
            "bound": policy.spec.bound,
            "summary": policy.spec.summary,
            "source": policy.spec.source,
        }
        for name, policy in ((name, parse(name)) for name in known_policies())
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_table(rows)


@app.command(epilog=examples(
    "moesim policies show hobbit",
    "moesim policies show 'least-stale[key=cyclic]'",
    "moesim policies show mine.py:MyEvict --json",
))
def show(
    policy: Annotated[
        str, typer.Argument(metavar="POLICY", help="A name, with or without parameters.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Explain a policy: its rules, their parameters, what its source leaves open."""
    from moesim.policies.describe import describe

    found = describe(policy)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        _print(found)


def _print(policy: "PolicyText") -> None:
    from rich.markup import escape

    from moesim.summary import console

    out = console()
    labels = ["lossless" if policy.lossless else "lossy"]
    labels += ["a bound"] if policy.bound else []
    labels += ["reads ahead: no such thing could be deployed as it stands"] if policy.reads_ahead else []
    labels += ["needs a trace with scores"] if policy.needs_scores else []
    out.print(f"[bold]{escape(policy.name)}[/bold] ({', '.join(labels)})")
    out.print(escape(policy.summary))
    out.print(f"source: {escape(policy.source)}")
    for point in policy.open_rules:
        out.print(f"open: {escape(point)}")
    for rule in policy.rules:
        out.print(f"\n[bold]{rule.role}: {escape(rule.name)}[/bold]")
        for name, value in rule.parameters.items():
            mark = "" if name in rule.given else "  (default)"
            out.print(f"  {name} = {escape(json.dumps(value))}{mark}")
        out.print(escape("\n".join(f"  {line}" if line else "" for line in rule.text.splitlines())))
