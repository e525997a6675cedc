"""`moesim fit`: learn from text what a predictor needs; the model itself stays as it is."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.command_line import examples

if TYPE_CHECKING:
    from moesim.record.predictors.fitted import Fitted

app = typer.Typer(
    no_args_is_help=True, help="Fit predictors on a model and a text (needs the extra `record`; docs/predictors.md)."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or its name.", show_default=False)]
Text = Annotated[
    Path, typer.Option("--text", metavar="FILE", help="UTF-8 text, or token ids (.npy).", show_default=False)
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="What to write (.safetensors).", show_default=False)
]
Tokens = Annotated[int, typer.Option(min=0, help="Tokens used; 0 uses all.")]
SequenceTokens = Annotated[int, typer.Option(min=2, help="Tokens of each sequence.")]
BatchSequences = Annotated[int, typer.Option("--batch", min=1, help="Sequences of each forward pass.")]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option("--held-out", metavar="TRACE", help="Refuse text that this trace was recorded from; again for more."),
]
Seed = Annotated[int, typer.Option(help="Order of the text, and first weights.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: how the model computes.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def _check_extra() -> None:
    from moesim.errors import InputError

    for name in ("torch", "transformers"):
        if find_spec(name) is None:
            raise InputError(f"moesim fit needs {name}: install moesim[record]")


@app.command("default-vectors", epilog=examples(
    "moesim fit default-vectors ./olmoe --text wiki.txt --out vectors.safetensors",
    "moesim fit default-vectors ./olmoe --text wiki.txt --out v.safetensors --device cuda --held-out olmoe.safetensors",
))
def default_vectors(
    model: Model, text: Text, out: Out, tokens: Tokens = 100_000, sequence_tokens: SequenceTokens = 512,
    batch_sequences: BatchSequences = 8, held_out: HeldOut = None, seed: Seed = 0, device: Device = "cpu",
    dtype: Dtype = "auto", quiet: Quiet = False,
) -> None:
    """Fit default vectors: the mean output of every expert over the tokens routed to it."""
    _check_extra()
    from moesim.record.predictors import fit

    base, layers, fitting_text = _prepared(
        model, text, out, tokens, sequence_tokens, batch_sequences, held_out, seed, device, dtype
    )
    with _progress(quiet, "batches") as progress:
        found = fit.default_vectors(base, layers, fitting_text, progress)
    unused = int((found.tensors["counts"] == 0).sum())
    _keep(found, out, quiet, f"; {unused} experts were never chosen and have a vector of zeros" if unused else "")


@app.command(epilog=examples(
    "moesim fit estimator ./olmoe --text wiki.txt --default-vectors vectors.safetensors --out estimator.safetensors",
    "moesim fit estimator ./olmoe --text wiki.txt --default-vectors v.safetensors --m 4 --device cuda -o e.safetensors",
))
def estimator(
    model: Model, text: Text, out: Out,
    vectors: Annotated[
        Path, typer.Option("--default-vectors", metavar="FILE", help="Of `moesim fit default-vectors`.")
    ],
    m: Annotated[int, typer.Option(min=1, help="The net is hidden / m wide.")] = 2,
    n: Annotated[int, typer.Option(min=1, help="Its inner layer is n times as wide.")] = 2,
    learning_rate: Annotated[float, typer.Option(min=0, help="Falls linearly to nothing.")] = 1e-3,
    step_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one step of the optimiser.")] = 1024,
    validation_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the text kept for choosing the hybrid's layers.")
    ] = 0.1,
    tokens: Tokens = 5_000_000, sequence_tokens: SequenceTokens = 512, batch_sequences: BatchSequences = 8,
    held_out: HeldOut = None, seed: Seed = 0, device: Device = "cpu", dtype: Dtype = "auto", quiet: Quiet = False,
) -> None:
    """Fit the learned estimator: one small net for all layers, KL to the true routers; finds the hybrid's layers."""
    _check_extra()
    from moesim.record.predictors import fit
    from moesim.record.predictors.estimator_fit import EstimatorSettings
    from moesim.record.predictors.fitted import Fitted
    from moesim.record.weights import weights_sha256

    base, layers, fitting_text = _prepared(
        model, text, out, tokens, sequence_tokens, batch_sequences, held_out, seed, device, dtype
    )
    given = Fitted.load(vectors, "default-vectors", weights_sha256(base))
    settings = EstimatorSettings(m, n, learning_rate, step_tokens)
    with _progress(quiet, "steps") as progress:
        found = fit.estimator(
            base, layers, fitting_text, given, settings, validation_share=validation_share, seed=seed, progress=progress
        )
    about = found.about
    _keep(found, out, quiet, (
        f"; recall at {about['top_k']} on {about['validation_tokens']:,} tokens of validation "
        f"{_mean(about['validation_recall']):.3f}, without the net {_mean(about['validation_recall_without']):.3f}, "
        f"better on {len(about['wins'])} of {len(layers) - 1} layers"
    ))


@app.command("pre-attention", epilog=examples(
    "moesim fit pre-attention ./olmoe --text wiki.txt --out pre-attention.safetensors",
    "moesim fit pre-attention ./olmoe --text wiki.txt --architecture arch2 --device cuda --out arch2.safetensors",
))
def pre_attention(
    model: Model, text: Text, out: Out,
    architecture: Annotated[str, typer.Option(help="arch1 or arch2 (arXiv 2511.10676).")] = "arch1",
    width: Annotated[int, typer.Option(min=1, help="Width of each layer's net.")] = 2048,
    learning_rate: Annotated[float, typer.Option(min=0, help="Falls linearly to nothing.")] = 1e-3,
    step_tokens: Annotated[int, typer.Option(min=2, help="Tokens of one step of the optimiser.")] = 1024,
    tokens: Tokens = 1_000_000, sequence_tokens: SequenceTokens = 512, batch_sequences: BatchSequences = 8,
    held_out: HeldOut = None, seed: Seed = 0, device: Device = "cpu", dtype: Dtype = "auto", quiet: Quiet = False,
) -> None:
    """Fit the pre-attention nets: one per layer, from what enters its attention to the experts that it chooses."""
    _check_extra()
    from moesim.record.predictors import fit

    base, layers, fitting_text = _prepared(
        model, text, out, tokens, sequence_tokens, batch_sequences, held_out, seed, device, dtype
    )
    with _progress(quiet, "steps") as progress:
        found = fit.pre_attention(
            base, layers, fitting_text, architecture, width=width, learning_rate=learning_rate,
            step_tokens=step_tokens, seed=seed, progress=progress,
        )
    _keep(found, out, quiet, "")


def _prepared(
    model: str, text: Path, out: Path, tokens: int, sequence_tokens: int, batch_sequences: int,
    held_out: list[Path] | None, seed: int, device: str, dtype: str,
) -> tuple[Any, Any, Any]:
    """Model, MoE layers and text; whatever can be wrong is found before the first pass."""
    from transformers.utils import logging

    from moesim.errors import InputError
    from moesim.record.checkpoint import load_model, load_tokenizer
    from moesim.record.predictors.fitting_text import refuse_recorded, text_of_tokens, tokens_of_file
    from moesim.trace import Trace

    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    if not text.is_file():
        raise InputError(f"{text}: there is no such file")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    base, layers = load_model(model, device, dtype)
    ids = tokens_of_file(text, lambda: load_tokenizer(model), base.config.vocab_size)
    fitting_text = text_of_tokens(
        ids, str(text), sequence_tokens=sequence_tokens, batch_sequences=batch_sequences, most_tokens=tokens, seed=seed
    )
    for trace in held_out or []:
        refuse_recorded(fitting_text, Trace.load(trace))
    return base, layers, fitting_text


def _progress(quiet: bool, what: str) -> Any:
    from moesim.progress import no_progress, shown_progress

    return no_progress() if quiet else shown_progress(what)


def _keep(found: "Fitted", out: Path, quiet: bool, more: str) -> None:
    found.save(out)
    if not quiet:
        about = found.about
        typer.echo(
            f"{out}: {found.kind} of {about['model']} ({about['weights_sha256'][:12]}…), {about['tokens']:,} tokens, "
            f"{out.stat().st_size / 1e6:,.1f} MB{more}"
        )


def _mean(recall: list[float | None]) -> float:
    known = [each for each in recall if each is not None]
    return sum(known) / len(known)
