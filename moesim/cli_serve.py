"""`moesim serve`: a stream of requests on one machine, and how long they wait."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moesim.command_line import overrides
from moesim.errors import ConfigError

EXAMPLES = (
    "moesim serve --policy lru --cache 25% --arrivals-per-s 0.05",
    "moesim serve --policy prefetch-and-refetch --cache 50% --arrivals-per-s 0.1 --requests 200 --warmup-requests 20",
    "moesim serve --policy lru --cache 25% --arrivals log.csv       # arrival_s[,prompt_tokens,output_tokens]",
    "moesim serve --policy lru --cache rest --kv-tokens 20000 --max-batch 4 --arrivals-per-s 0.05",
    "moesim sweep configs/serving.yaml                              # many loads: docs/serving.md",
)


def serve(
    policy: Annotated[str, typer.Option(help="A policy, with parameters in brackets (moesim policies).")],
    arrivals_per_s: Annotated[
        float | None, typer.Option(help="Requests arrive at this rate, as a Poisson process.")
    ] = None,
    arrivals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests arrive as this file says (.csv, .jsonl).")
    ] = None,
    arrival_seed: Annotated[int, typer.Option(help="Another draw of the same rate.")] = 0,
    requests: Annotated[
        int | None, typer.Option(help="How many arrive; by default as many as were recorded, or as the file holds.")
    ] = None,
    warmup_requests: Annotated[int, typer.Option(help="Requests that are served first and not counted.")] = 0,
    max_batch: Annotated[int, typer.Option(help="The most sequences at once.")] = 8,
    max_prefill_tokens: Annotated[
        int, typer.Option(help="The most prompt tokens of a step of several prompts.")
    ] = 2048,
    kv_tokens: Annotated[
        int | None,
        typer.Option(help="KV cache reserved for so many tokens; by default what dense weights and slots leave."),
    ] = None,
    cache: Annotated[
        str, typer.Option(help="Share of all experts that have a slot; `rest` of the card beside --kv-tokens.")
    ] = "0%",
    trace: Annotated[
        Path, typer.Option(help="A recorded trace (.safetensors), whose requests are replayed by turns.")
    ] = Path("traces/reference-48x128.safetensors"),
    model: Annotated[
        str, typer.Option(help="A model's name, or a YAML or Hugging Face config.json.")
    ] = "qwen3-30b-a3b",
    hardware: Annotated[str, typer.Option(help="A machine's name, or a YAML file.")] = "rtx-a6000",
    engine: Annotated[str, typer.Option(help="An engine's name, or a YAML file.")] = "yalis",
    context: Annotated[
        int | None, typer.Option(help="KV length of every decode step; by default the trace's own.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIGURE=VALUE", help="Set a figure of the hardware; can be given again."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")] = False,
) -> None:
    """Serve requests that arrive by the clock: queueing, time to first token, throughput under load."""
    from pydantic import ValidationError

    from moesim.config import REST, cache_fraction
    from moesim.requests.serving import StreamConfig
    from moesim.run import simulate
    from moesim.run_config import RunConfig
    from moesim.summary import print_served

    try:
        fraction = 0.0 if cache == REST else cache_fraction(cache)
    except ConfigError as error:
        raise ConfigError(f"--cache {cache}: {error}") from None
    try:
        stream = StreamConfig(
            arrivals_per_s=arrivals_per_s, arrivals=arrivals, arrival_seed=arrival_seed, requests=requests,
            warmup_requests=warmup_requests, max_batch=max_batch, max_prefill_tokens=max_prefill_tokens,
            kv_tokens=kv_tokens, cache_rest=cache == REST,
        )
        config = RunConfig(
            trace=trace, model=model, hardware=hardware, engine=engine, policy=policy, cache_fraction=fraction,
            context_tokens=context, hardware_overrides=overrides(settings or []), stream=stream, interval=False,
        )
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        message = found["msg"].removeprefix("Value error, ")
        if found["loc"]:
            flag = str(found["loc"][0]).replace("_", "-").replace("context-tokens", "context")
            message = f"--{flag} {found['input']}: {message}"
        raise ConfigError(message) from None
    row = simulate(config).row()
    if as_json:
        typer.echo(json.dumps(row, indent=2))
    else:
        print_served(row)
