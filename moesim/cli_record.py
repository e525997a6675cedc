"""`moesim record`: a checkpoint and prompts in, a trace out."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import ConfigError, InputError

EXAMPLES = (
    "moesim record traces/models/reference-8x16 --prompts prompts.txt --out mine.safetensors",
    "moesim record ./OLMoE-1B-7B --prompts chat.jsonl --batch 8 --device cuda --dtype bfloat16 --out chat.safetensors",
    "moesim record ./model --prompts p.txt --out p.safetensors --predictors residual,estimator --fitted e.safetensors",
    "Ctrl-C, then the same command again: continues after the last finished batch.",
)


def record(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or its name.", show_default=False)
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            metavar="FILE", show_default=False,
            help='One prompt a line; or .jsonl: {"prompt", "kind", "continuation"} or {"tokens", "prompt_tokens"}.',
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The trace to write (.safetensors).", show_default=False)
    ],
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens that a request chooses; 0 runs the given ones alone.")
    ] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 chooses greedily, above 0 draws.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    ignore_end: Annotated[bool, typer.Option("--ignore-end", help="Go on after the model's end token.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Requests side by side; their tokens of a pass share a step.")] = 1,
    scores: Annotated[bool, typer.Option("--scores", help="Keep the router's score of every expert.")] = False,
    predictors: Annotated[
        str, typer.Option(metavar="NAMES", help="Predictors to record beside, separated by commas.")
    ] = "",
    fitted: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="What `moesim fit` wrote; again for more.")
    ] = None,
    ranked: Annotated[int, typer.Option(min=1, help="Experts kept of each prediction.")] = 12,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: how the model computes.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Record what the routers of a transformers MoE model choose for every token (needs the extra `record`)."""
    for needed in ("torch", "transformers"):
        if find_spec(needed) is None:
            raise InputError(f"moesim record needs {needed}: install moesim[record]")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")
    from transformers.utils import logging

    from moesim.progress import no_progress, shown_progress
    from moesim.record.checkpoint import load_model
    from moesim.record.predictors.chosen import load_fitted, predictors_by_name
    from moesim.record.prompts import read_prompts
    from moesim.record.session import record as run
    from moesim.record.weights import weights_sha256

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    given = read_prompts(prompts)
    base, layers = load_model(model, device, dtype)
    names = [name.strip() for name in predictors.split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise ConfigError(f"--predictors {predictors}: each at most once")
    files = [load_fitted(path, weights_sha256(base)) for path in fitted or []]
    with no_progress() if quiet else shown_progress("passes") as progress:
        trace = run(
            base, given, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, ignore_end=ignore_end,
            batch=batch, scores=scores,
            predictors=predictors_by_name(names, layers, files), ranked=ranked, out=out, progress=progress,
            say=(lambda line: None) if quiet else (lambda line: typer.echo(line, err=True)),
        )
    if not quiet:
        typer.echo(f"{out}: {trace.tokens:,} tokens, {out.stat().st_size / 1e6:,.1f} MB")
