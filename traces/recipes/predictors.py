"""The stage `predictors`: fit every predictor on training text, record held-out text with all of them, measure recall.

It leaves in the model's folder what was fitted (`vectors`, `estimator`, `arch1`, `arch2`, all .safetensors), the trace
`NAME-predictors.safetensors` with a channel per predictor, and `recall.json`, the output of `moesim trace predictors`.
The trace is too large to ship; the recall is not, and `write` puts it beside the trace as `NAME.recall.json`.
"""

import json
import time
from pathlib import Path

import torch

from moesim import __version__
from moesim.record.moe_layers import find_moe_layers
from moesim.record.predictors import fit
from moesim.record.predictors.chosen import names_for, predictors_by_name
from moesim.record.predictors.fitted import Fitted
from moesim.record.predictors.fitting_text import FittingText
from moesim.record.predictors.pre_attention import ARCHITECTURES
from moesim.record.predictors.recall_report import report
from moesim.record.predictors.record_predictors import record_predictors
from moesim.record.predictors.token_windows import WINDOWS_KEY, aligned_hashes, text_of_hashes
from moesim.trace import Request, TraceMetadata
from traces.recipes.corpus import KINDS, Corpus
from traces.recipes.shapes import Shape
from traces.recipes.stages import DEFAULT_VECTOR_BATCHES, RANKED, REQUESTS_PER_KIND, described, requests
from traces.recipes.training import MixedBatches, load_model
from traces.recipes.write import CHECKPOINT

SEQUENCES = 16
# 550 batches of 16 × 512 tokens are the 4.5 M that the paper of the estimator fits on.
FIT_BATCHES = 550
# 1.2 M for the pre-attention nets, of which there is one per layer: they take as long as the estimator.
PRE_ATTENTION_BATCHES = 150
DRAFT_TOKENS = 4


def predictors_stage(shape: Shape, corpus: Corpus, folder: Path, device: str) -> None:
    """Fit, record and measure with the weights in `folder`.

    Raises:
        InputError: a recorded request shares a stretch of text with what was fitted on.
    """
    began = time.monotonic()
    model = load_model(folder / CHECKPOINT, device).requires_grad_(False)
    layers = find_moe_layers(model)
    mixed = MixedBatches(corpus.train, SEQUENCES, seed=2)
    batches = [mixed.next()[:, :-1] for _ in range(FIT_BATCHES)]
    text = FittingText.of_batches(batches, "training text of the corpus")
    few = FittingText.of_batches(batches[:DEFAULT_VECTOR_BATCHES], "training text of the corpus")
    fitted = {"vectors": fit.default_vectors(model, layers, few)}
    fitted["estimator"] = fit.estimator(model, layers, text, fitted["vectors"])
    part = FittingText.of_batches(batches[:PRE_ATTENTION_BATCHES], "training text of the corpus")
    for architecture in ARCHITECTURES:
        fitted[architecture] = fit.pre_attention(model, layers, part, architecture)
        print(f"fitted up to {architecture} by {time.monotonic() - began:.1f} s", flush=True)
    for name, each in fitted.items():
        each.save(folder / f"{name}.safetensors")
    _record(shape, corpus, folder, model, fitted)
    print(f"recorded and measured by {time.monotonic() - began:.1f} s", flush=True)


def _record(shape: Shape, corpus: Corpus, folder: Path, model: torch.nn.Module, fitted: dict[str, Fitted]) -> None:
    layers = find_moe_layers(model)
    held_out = requests(corpus, KINDS, REQUESTS_PER_KIND, shape.prompt_tokens, shape.decode_tokens)
    ranked = min(RANKED, shape.config.num_experts // 2)
    recording, available = record_predictors(
        model, layers, held_out, predictors_by_name(names_for(layers), layers, fitted.values()), ranked=ranked,
        draft_tokens=DRAFT_TOKENS,
    )
    name = f"{shape.name}-predictors"
    trace = recording.trace(TraceMetadata(
        name=name,
        model=shape.description,
        layers=len(layers),
        experts=layers[0].layout.n_experts,
        top_k=layers[0].layout.top_k,
        moe_layers=[layer.number for layer in layers],
        predictors=available,
        dataset="held-out documents of the corpus, as in the trace without this suffix",
        tokenizer=f"byte-level BPE of {corpus.description['vocabulary']} entries, trained on the training text",
        decoding="teacher-forced",
        recorder="moesim.record",
        recorder_version=__version__,
        licence="Apache-2.0 (expert ids, weights and scores; the text itself is not contained)",
        source=f"python -m traces.recipes {shape.name} --stages predictors",
        requests=[Request(**each) for each in described(held_out)],
        provenance={
            "fitted": {kind: dict(each.about) for kind, each in fitted.items()},
            WINDOWS_KEY: text_of_hashes(aligned_hashes(request.tokens for request in held_out)),
        },
    ))
    trace.validate()
    trace.save(folder / f"{name}.safetensors")
    told = report(trace) | {"weights_sha256": fitted["vectors"].about["weights_sha256"]}
    (folder / "recall.json").write_text(json.dumps(told, indent=1))
