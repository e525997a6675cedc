"""One recording from prompts to trace: what `moesim.record(...)` and `moesim record` both run."""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from moesim import __version__
from moesim.errors import InputError
from moesim.record.checkpoint import described_memory, load_tokenizer
from moesim.record.decoding import Decoding, TokenSequence
from moesim.record.memory import check_memory
from moesim.record.moe_layers import MoeLayer, find_moe_layers
from moesim.record.predictors.chosen import refuse_fitted_on
from moesim.record.predictors.predictor import Predictor, foresee
from moesim.record.predictors.token_windows import WINDOWS_KEY, aligned_hashes, text_of_hashes
from moesim.record.prompts import Prompts, given_prompts, token_sequences
from moesim.record.recorder import record_batch
from moesim.record.recording import Recording, joined
from moesim.record.recording_folder import RecordingFolder
from moesim.record.weights import weights_sha256
from moesim.trace import Request, Trace, TraceMetadata

Progress = Callable[[int, int], None]


def record(
    model: Any,
    prompts: Prompts | Sequence[Any],
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    ignore_end: bool = False,
    batch: int = 1,
    scores: bool = False,
    predictors: Sequence[Predictor] = (),
    ranked: int = 12,
    out: Path | str | None = None,
    name: str | None = None,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], object] = lambda line: None,
) -> Trace:
    """Run `prompts` through a transformers `model` and return what its routers chose for every token.

    Args:
        model: a causal or sequence-to-sequence language model with routed experts, on any device; left as it was.
        prompts: texts, sequences of token ids, or `Prompt`s (which can give a continuation to be teacher-forced).
        tokenizer: for texts; by default the one that belongs to the model's own name.
        max_new_tokens: how many tokens a request may choose after those it gives; 0 runs the given ones alone.
        temperature: 0 chooses greedily, above 0 draws, by `seed`.
        seed: of the draws.
        ignore_end: go on after the model's end token.
        batch: requests run side by side; the tokens of one forward pass share a step of the trace.
        scores: keep the router's score of every expert.
        predictors: as `moesim.record.predictors.chosen` makes them; each is kept as its `ranked` best experts.
        ranked: at most the number of experts.
        out: write the trace there, rows as they come; the same call continues one that was cut off. Without it the
            trace is kept in memory.
        name: of the trace; by default that of `out`, or of the model.
        progress: called with forward passes done and in all.
        say: called with a line on the memory that it takes, before the first pass.

    Raises:
        InputError: no routed experts, a router of unknown kind, a prompt that the model cannot run or a predictor was
            fitted on, too little memory, or an `out` that cannot be written or was begun with something else.
    """
    layers = find_moe_layers(model)
    given = prompts if isinstance(prompts, Prompts) else given_prompts(prompts)
    asked = {"batch": (batch, 1), "max_new_tokens": (max_new_tokens, 0), "temperature": (temperature, 0)}
    for what, (value, least) in asked.items():
        if value < least:
            raise InputError(f"{what} = {value}: it is at least {least}")
    text_config = model.config.get_text_config()
    requests = token_sequences(
        given, lambda: tokenizer or load_tokenizer(model.config.name_or_path), text_config.vocab_size,
        getattr(text_config, "max_position_embeddings", None), max_new_tokens,
    )
    refuse_fitted_on(predictors, [each.tokens for each in requests])
    session = _Session(
        model=model, layers=layers, requests=requests, prompts=given, batch=batch, scores=scores,
        decoding=Decoding(max_new_tokens, temperature, seed, frozenset() if ignore_end else _end_tokens(model)),
        predictors=predictors, ranked=min(ranked, layers[0].layout.n_experts), progress=progress,
    )
    needed = check_memory(
        model, layers, requests, session.decoding, batch, scores=scores, predictors=len(predictors)
    )
    say(f"{described_memory(model)}; {needed}")
    description = session.description()
    if out is None:
        pieces = [piece for start in session.starts(0) for piece in session.run(start, None)]
        return joined(pieces).trace(session.metadata(name or type(model).__name__, description))
    out = Path(out)
    folder = RecordingFolder(out, description)
    try:
        for start in session.starts(len(folder.requests)):
            for piece in session.run(start, folder.steps):
                folder.append(piece)
            folder.commit(session.listed(start))
        folder.finish(session.metadata(name or out.stem, description))
    finally:
        folder.close()
    return Trace.load(out)


@dataclass
class _Session:
    """What one call of `record` works on."""

    model: Any
    layers: Sequence[MoeLayer]
    requests: Sequence[TokenSequence]
    prompts: Prompts
    batch: int
    scores: bool
    decoding: Decoding
    predictors: Sequence[Predictor]
    ranked: int
    progress: Progress
    _steps: int = 0
    _passes: int = 0
    _planned: int = 0

    def starts(self, first: int) -> range:
        """The first request of every batch from `first` on."""
        passes = {start: self._passes_of(start) for start in range(0, len(self.requests), self.batch)}
        self._planned = sum(passes.values())
        self._passes = sum(each for start, each in passes.items() if start < first)
        self.progress(self._passes, self._planned)
        return range(first, len(self.requests), self.batch)

    def run(self, start: int, first_step: int | None) -> Iterator[Recording]:
        """The rows of one batch; its steps begin at `first_step`, or after those of the batch before."""
        begun = self._passes

        def after_pass() -> None:
            self._passes += 1
            self.progress(self._passes, self._planned)

        pieces = record_batch(
            self.model, self.layers, self._batch(start), self.decoding,
            first_request=start,
            first_step=self._steps if first_step is None else first_step,
            predictors={each.name: partial(foresee, each) for each in self.predictors},
            attention_input=any(each.reads_attention_input for each in self.predictors),
            ranked=self.ranked,
            all_scores=self.scores,
            after_pass=after_pass,
        )
        for piece in pieces:
            self._steps = int(piece.step[-1]) + 1
            yield piece
        self._passes = begun + self._passes_of(start)  # an end token may have saved some
        self.progress(self._passes, self._planned)

    def listed(self, start: int) -> list[Request]:
        """A batch's requests as the metadata list them."""
        return [
            Request(request=start + at, kind=each.kind, prompt_tokens=each.prompt_tokens)
            for at, each in enumerate(self._batch(start))
        ]

    def description(self) -> dict[str, Any]:
        """What decides the rows; a recording is continued only under the same."""
        config = self.model.config
        return {
            "recorder_version": __version__,
            "model": type(self.model).__name__,
            "checkpoint": Path(config.name_or_path).name if Path(config.name_or_path).is_dir() else config.name_or_path,
            "weights_sha256": weights_sha256(self.model),
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "device": _device_name(next(self.model.parameters()).device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "prompts": self.prompts.source,
            "prompts_sha256": self.prompts.sha256,
            "batch": self.batch,
            "max_new_tokens": self.decoding.max_new_tokens,
            "temperature": self.decoding.temperature,
            "seed": self.decoding.seed,
            "end_tokens": sorted(self.decoding.end_tokens),
            "scores": self.scores,
            "predictors": {each.name: each.availability.model_dump() for each in self.predictors},
            "ranked": self.ranked,
            "score_function": self.layers[0].layout.score_function,
        }

    def metadata(self, name: str, description: dict[str, Any]) -> TraceMetadata:
        """What the trace says about itself."""
        layout = self.layers[0].layout
        checkpoint = description["checkpoint"]
        hashes = text_of_hashes(aligned_hashes(each.tokens for each in self.requests))
        return TraceMetadata(
            name=name,
            model=f"{description['model']} {checkpoint}".strip(),
            layers=len(self.layers),
            experts=layout.n_experts,
            top_k=layout.top_k,
            moe_layers=[layer.number for layer in self.layers],
            predictors={each.name: each.availability for each in self.predictors},
            dataset=f"prompts of {self.prompts.source}, sha256 {self.prompts.sha256}",
            tokenizer=f"that of {checkpoint}" if checkpoint else "unknown",
            decoding=self._decoded(),
            recorder="moesim.record",
            recorder_version=__version__,
            licence="unknown: that of the model and of the prompts",
            source="moesim record",
            requests=[each for start in range(0, len(self.requests), self.batch) for each in self.listed(start)],
            notes=(
                f"Up to {self.batch} requests side by side, the tokens of one forward pass share a step. The last "
                "token that a request chooses is not run."
            ),
            provenance={**{key: each for key, each in description.items() if key != "predictors"}, WINDOWS_KEY: hashes},
        )

    def _decoded(self) -> Literal["teacher-forced", "greedy", "sampled", "unknown"]:
        given = any(len(each.tokens) > each.prompt_tokens for each in self.requests)
        if self.decoding.max_new_tokens <= 1:
            return "teacher-forced"
        if given:
            return "unknown"  # in part
        return "sampled" if self.decoding.temperature > 0 else "greedy"

    def _batch(self, start: int) -> Sequence[TokenSequence]:
        return self.requests[start : start + self.batch]

    def _passes_of(self, start: int) -> int:
        return 1 + max(self.decoding.passes_after_prefill(each) for each in self._batch(start))


def _end_tokens(model: Any) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    end = getattr(generation, "eos_token_id", None)
    end = getattr(model.config, "eos_token_id", None) if end is None else end
    return frozenset(end) if isinstance(end, list) else frozenset([] if end is None else [end])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
