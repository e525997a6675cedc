"""From a corpus to a trace, in stages that each leave a file, so that a broken one can be run again alone.

    corpus/                      corpus.build: no GPU, a few minutes
    NAME/checkpoint/, training.json  train: one GPU
    NAME/*.recording.safetensors record: the same GPU, a minute or two
    traces/NAME*.safetensors     write: no GPU, a second
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors.default_vectors import fit_default_vectors
from moesim.record.recorder import TokenSequence, record_requests
from moesim.record.weights import weights_sha256
from traces.recipes.corpus import KINDS, Corpus
from traces.recipes.shapes import Shape
from traces.recipes.training import MixedBatches, build_model, load_model, perplexities, train
from traces.recipes.write import CHECKPOINT

REQUESTS_PER_KIND = 3
RANKED = 12
DEFAULT_VECTOR_BATCHES = 12
# The stretch with every router probability is short: 256 or 128 bytes a token and layer.
SCORED_KINDS = ("prose", "c", "german")
SCORED_PROMPT_TOKENS, SCORED_DECODE_TOKENS = 32, 64


def train_stage(
    shape: Shape, corpus: Corpus, folder: Path, device: str, seconds: float, most_steps: int | None = None
) -> None:
    """Train the shape's model; leaves its weights and `training.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(shape, device)
    layers = find_moe_layers(model)
    told = train(
        model,
        layers,
        MixedBatches(corpus.train, shape.sequences_per_step),
        seconds=seconds,
        most_steps=most_steps,
        peak_learning_rate=shape.peak_learning_rate,
    )
    model.save_pretrained(folder / CHECKPOINT)
    told["perplexity"] = perplexities(model, corpus.held_out)
    told["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    told["weights_sha256"] = weights_sha256(model)
    told["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    told["torch"] = torch.__version__
    (folder / "training.json").write_text(json.dumps(told, indent=1))
    print(json.dumps(told), flush=True)


def record_stage(shape: Shape, corpus: Corpus, folder: Path, device: str) -> None:
    """Fit default vectors on training text and record held-out text with the weights in `folder`."""
    model = load_model(folder / CHECKPOINT, device)
    layers = find_moe_layers(model)
    began = time.monotonic()
    vectors, counts = fit_default_vectors(model, layers, fitting_batches(corpus, model), shape.config.num_experts)
    told: dict[str, Any] = {
        "default_vector_tokens": int(counts.sum()) // (len(layers) * shape.config.num_experts_per_tok),
        "experts_without_default_vector": int((counts == 0).sum()),
    }
    print(f"default vectors {told} in {time.monotonic() - began:.1f} s", flush=True)
    ranked = min(RANKED, shape.config.num_experts // 2)  # to rank all of few experts says nothing
    main = requests(corpus, KINDS, REQUESTS_PER_KIND, shape.prompt_tokens, shape.decode_tokens)
    scored = requests(corpus, SCORED_KINDS, 1, SCORED_PROMPT_TOKENS, SCORED_DECODE_TOKENS)
    record_requests(
        model, layers, main, predictors=shape.trace_predictors, default_vectors=vectors, ranked=ranked
    ).save(folder / f"{shape.name}.recording.safetensors")
    print(f"recorded {sum(len(r.tokens) for r in main)} tokens by {time.monotonic() - began:.1f} s", flush=True)
    record_requests(model, layers, scored, all_scores=True).save(folder / f"{shape.name}-scores.recording.safetensors")
    told["requests"] = {f"{shape.name}": described(main), f"{shape.name}-scores": described(scored)}
    (folder / "recording.json").write_text(json.dumps(told, indent=1))
    print(f"recorded all by {time.monotonic() - began:.1f} s", flush=True)


def fitting_batches(corpus: Corpus, model: nn.Module) -> Iterator[torch.Tensor]:
    """Training text, mixed as in training, from another seed: what the default vectors are means over."""
    device = next(model.parameters()).device
    mixed = MixedBatches(corpus.train, sequences=16, seed=1)
    for _ in range(DEFAULT_VECTOR_BATCHES):
        yield mixed.next()[:, :-1].to(device)


def requests(corpus: Corpus, kinds: tuple[str, ...], per_kind: int, prompt: int, decode: int) -> list[TokenSequence]:
    """Held-out requests interleaved across kinds: the first of every kind, then the second of every kind."""
    return [
        TokenSequence(kind, corpus.requests[kind][number]["tokens"][: prompt + decode], prompt)
        for number in range(per_kind)
        for kind in kinds
    ]


def described(recorded: list[TokenSequence]) -> list[dict[str, Any]]:
    """The requests as trace metadata lists them."""
    return [
        {"request": number, "kind": request.kind, "prompt_tokens": request.prompt_tokens}
        for number, request in enumerate(recorded)
    ]
