"""`moesim quality`: what lossy execution of experts costs a model, measured by running it."""

from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import ConfigError

EXAMPLES = "\n\n".join((
    "Examples:",
    "  moesim quality ./olmoe --text held-out.txt --fitted olmoe-default-vectors.safetensors",
    "  moesim quality ./olmoe --text held-out.jsonl --mode drop --mode cache-prior --cache 25% --cache 50%",
    "  moesim quality ./qwen3 --text wiki.txt --device cuda --dtype bfloat16 --tokens 32768 --lanes 32",
))


def quality(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A transformers MoE checkpoint.", show_default=False)],
    text: Annotated[
        Path, typer.Option(metavar="FILE", help="Held-out text, .jsonl, or token ids (.npy).", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write: TRACE.quality.json.")
    ] = None,
    fitted: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="What `moesim fit` wrote; can be given again.")
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A mode; can be given again. By default all of them.")
    ] = None,
    predictor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A predictor; can be given again. The last one feeds modes with a cache."),
    ] = None,
    first_layer: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Also speculate from MoE layer N on alone; can be given again."),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARE", help="Share of all experts that have a slot; can be given again."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Read at most this many tokens of the text.")] = None,
    block: Annotated[int, typer.Option(min=3, help="Tokens of a block, each a sequence of its own.")] = 256,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a block that are its prompt, routed truly.")] = 32,
    warmup: Annotated[int, typer.Option(min=0, help="Decoded tokens of each lane that are run and not counted.")] = 64,
    lanes: Annotated[int, typer.Option(min=1, help="Sequences side by side, each with a cache of its own.")] = 8,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")] = False,
) -> None:
    """Measure what lossy execution costs: perplexity, divergence and top-1 agreement beside the true model.

    The model's own code runs; hooks replace what its routers choose. Every mode is run on the same held-out text,
    decoded teacher-forced, and told with 95 % intervals. The modes: speculate-and-execute (closed loop, on all layers
    and on later ones only), open-loop, resident-execute, drop, substitute, cache-prior, max-rank,
    cumulative-threshold and low-precision.
    """
    from moesim.atomic_write import atomic_write
    from moesim.config import cache_fraction
    from moesim.progress import no_progress, shown_progress
    from moesim.quality.run import Request, evaluate
    from moesim.quality.stored import as_json as stored_json
    from moesim.quality.words import print_quality

    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    fractions = []
    for share in cache or ():
        try:
            fractions.append(cache_fraction(share))
        except ConfigError as error:
            raise ConfigError(f"--cache {share}: {error}") from None
    request = Request(
        model=model, text=text, fitted=fitted or (), modes=mode or (), predictors=predictor or (),
        first_layers=first_layer or (), cache_fractions=fractions or Request.cache_fractions, tokens=tokens,
        block_tokens=block, prompt_tokens=prompt, warmup_tokens=warmup, lanes=lanes, device=device, dtype=dtype,
    )
    with no_progress() if quiet else shown_progress("passes") as progress:
        found = evaluate(request, progress)
    if out is not None:
        with atomic_write(out) as file:
            file.write(stored_json(found).encode())
    if as_json:
        typer.echo(stored_json(found), nl=False)
    elif not quiet:
        print_quality(found)
