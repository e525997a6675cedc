"""`moesim trace`: look at traces, check them, import, make, cut and join them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moesim.command_line import examples
from moesim.errors import ConfigError
from moesim.trace import Trace, save_concatenated

app = typer.Typer(
    no_args_is_help=True, help="Look at routing traces, check them, import, make, cut and join them."
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A trace (.safetensors).", show_default=False)]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="The trace to write (.safetensors).", show_default=False)
]


@app.command(epilog=examples(
    "moesim trace info traces/olmoe.safetensors",
    "moesim trace info --json traces/olmoe.safetensors | jq .statistics",
))
def info(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    rows: Annotated[
        int, typer.Option(min=0, help="Rows read for the statistics; 0 leaves the statistics out.")
    ] = 5_000,
) -> None:
    """Show a trace's shape, requests, predictors, origin and routing statistics."""
    from moesim.trace_summary import print_summary, summarize

    summary = summarize(Trace.load(file), rows)
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        print_summary(summary, Console())


@app.command(epilog=examples("moesim trace validate traces/*.safetensors"))
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Traces to check.", show_default=False)],
) -> None:
    """Check every value of traces against the format; the first that breaks a rule is named."""
    for file in files:
        trace = Trace.load(file)
        trace.validate()
        typer.echo(f"{file}: valid, {trace.tokens:,} tokens, sha256 {trace.content_hash()}")


@app.command(epilog=examples(
    "moesim trace predictors traces/reference-48x128.safetensors --plot recall.png",
    "moesim trace predictors --json mine.safetensors | jq '.predictors[].recall_at_k'",
))
def predictors(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw recall by layer and by rank (.png, .svg or .pdf).")
    ] = None,
    phase: Annotated[
        str | None, typer.Option(help="Tokens that count: decode, prefill or all; by default decode, if there are any.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows read; 0 reads all of them.")] = 20_000,
) -> None:
    """Measure what each predictor foresaw: recall at k and 1.5 k and by gate weight, per layer.

    Beside the predictions recorded in the trace stand three that need no model: the previous token's experts, the
    most used experts, and the match of activation matrices.
    """
    from moesim.record.predictors.recall_figure import save
    from moesim.record.predictors.recall_report import print_report, report

    told = report(Trace.load(file), phase, rows)
    if plot is not None:
        save(told, plot)
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print_report(told, Console())


@app.command("import", epilog=examples(
    "moesim trace import olmoe-all.tokens.jsonl --out olmoe.safetensors",
    "moesim trace import gptoss20b_decode_experts.npz --out gpt-oss-20b.safetensors",
    "moesim trace import routing.csv --out mine.safetensors --model my-model --experts 64 --licence CC0-1.0",
))
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The recording to import.", show_default=False)],
    out: Out,
    kind: Annotated[
        str | None, typer.Option(help="csv, jsonl, npz or nvmoe; by default what the file looks like.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The trace's name; by default the file's.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that was recorded.")] = None,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Experts per layer; by default one more than the largest id.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="What the tokens are of.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="What cut the text into tokens.")] = None,
    decoding: Annotated[
        str | None, typer.Option(help="How tokens were chosen: teacher-forced, greedy, sampled or unknown.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="The recording's licence.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the recording is from.")] = None,
    notes: Annotated[str | None, typer.Option(help="Anything else that a reader should know.")] = None,
) -> None:
    """Make a trace of a recording in another format: plain CSV or JSON lines, nvmoe, GPT-OSS archives."""
    from moesim.trace_import import Labels, import_trace

    labels = Labels(name, model, experts, dataset, tokenizer, decoding, licence, source, notes)
    trace = import_trace(file, kind, labels)
    trace.save(out)
    _wrote(out, trace)


@app.command(epilog=examples(
    "moesim trace synth --model mixtral-8x7b --overlap 0.37 --busiest 0.16 --out mixtral.safetensors",
    "moesim trace synth --layers 24 --experts 60 --top-k 4 --overlap 0.4 --busiest 0.25 -o x.safetensors",
))
def synth(
    out: Out,
    overlap: Annotated[float, typer.Option(
        help="Share of a token's experts that the token before also chose.", show_default=False
    )],
    busiest: Annotated[float, typer.Option(
        help="Share of the selections that goes to the busiest tenth of the experts.", show_default=False
    )],
    model: Annotated[
        str | None, typer.Option(help="Borrow the shape of a model: a name of configs/models or a file.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="MoE layers, without --model.")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts per layer, without --model.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token and layer, without --model.")] = None,
    decode_tokens: Annotated[int, typer.Option(help="Decoded tokens of each request.")] = 1000,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt tokens of each request, one prefill step.")] = 0,
    requests: Annotated[int, typer.Option(help="Requests, one after the other.")] = 1,
    recall: Annotated[
        float | None, typer.Option(help="Add a predictor 'synthetic' with this recall at top-k.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and options give the same trace.")] = 0,
) -> None:
    """Make a seeded synthetic trace of any shape, fitted to an overlap and a skew, and labelled synthetic."""
    from moesim.model import ModelSpec
    from moesim.trace_synthetic import SyntheticSpec, synthesize

    if model is not None:
        if (layers, experts, top_k) != (None, None, None):
            raise ConfigError(f"--model {model}: it sets the shape: leave --layers, --experts and --top-k out")
        found = ModelSpec.load(model)
        moe_layers, experts, top_k, model = tuple(found.moe_layers), found.experts, found.top_k, found.name
    elif layers is None or experts is None or top_k is None:
        raise ConfigError("a shape is missing: give --model, or --layers, --experts and --top-k")
    else:
        moe_layers, model = tuple(range(layers)), ""
    spec = SyntheticSpec(
        layers=len(moe_layers), experts=experts, top_k=top_k, overlap=overlap, busiest=busiest,
        decode_tokens=decode_tokens, prompt_tokens=prompt_tokens, requests=requests, seed=seed, model=model,
        moe_layers=moe_layers, recall=recall,
    )
    trace, reached = synthesize(spec)
    trace.save(out)
    _wrote(out, trace)
    typer.echo(
        f"overlap with the previous token {reached.overlap:.3f} (asked {overlap:g}), "
        f"busiest {spec.busiest_experts} of {spec.experts} experts {reached.busiest:.3f} (asked {busiest:g})"
    )


@app.command("slice", epilog=examples("moesim trace slice long.safetensors 0 2000 --out short.safetensors"))
def slice_(
    file: File,
    start: Annotated[int, typer.Argument(metavar="START", help="First row.", show_default=False)],
    stop: Annotated[int, typer.Argument(metavar="STOP", help="Row after the last.", show_default=False)],
    out: Out,
) -> None:
    """Write some consecutive rows (tokens) of a trace as a trace of their own."""
    trace = Trace.load(file)
    part = trace.slice(start, stop)
    origin = {"name": trace.metadata.name, "sha256": trace.content_hash(), "rows": [start, stop]}
    provenance = {**trace.metadata.provenance, "sliced": origin}
    part = replace(part, metadata=part.metadata.model_copy(update={"provenance": provenance}))
    part.save(out)
    _wrote(out, part)


@app.command(epilog=examples(
    "moesim trace concat morning.safetensors evening.safetensors --out day.safetensors",
    "moesim trace concat --pieces part-0.safetensors part-1.safetensors --out whole.safetensors",
))
def concat(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Traces of one model.", show_default=False)],
    out: Out,
    pieces: Annotated[bool, typer.Option(
        "--pieces", help="They are pieces of one recording: keep the numbers of steps and requests."
    )] = False,
) -> None:
    """Write one trace after the other; requests and steps are numbered on."""
    save_concatenated([Trace.load(file) for file in files], out, renumber=not pieces)
    _wrote(out, Trace.load(out))


def _wrote(out: Path, trace: Trace) -> None:
    typer.echo(
        f"{out}: {trace.tokens:,} tokens, {trace.layers} layers, {trace.n_experts} experts, top-{trace.top_k}, "
        f"{out.stat().st_size / 1e6:,.1f} MB"
    )
