"""Requests through a model as a serving engine runs them: one prefill pass for a batch, then a pass per further token.

Prompts of different lengths are padded on the left; positions are counted without the padding. A request leaves the
batch when it is done, the others go on. An encoder-decoder reads its prompt with the encoder in the first pass, and
its first decoder token is the model's own start token.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moesim.errors import InputError
from moesim.trace import DECODE, PREFILL


@dataclass(frozen=True)
class TokenSequence:
    """What one request holds: its token ids, how many of them are the prompt, and the kind of text it is.

    The tokens after the prompt are given to the model as its own (teacher-forced).
    """

    kind: str
    tokens: Sequence[int]
    prompt_tokens: int


@dataclass(frozen=True)
class Decoding:
    """How a request goes on after the tokens that it gives.

    `max_new_tokens` are chosen, greedily or, with a `temperature` above 0, drawn with `seed`; one of `end_tokens` ends
    the request. The last token chosen is an answer that nobody computes further: it has no row.
    """

    max_new_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0
    end_tokens: frozenset[int] = frozenset()

    def passes_after_prefill(self, request: TokenSequence) -> int:
        """The decode passes of a request that meets no end token."""
        return len(request.tokens) - request.prompt_tokens + max(0, self.max_new_tokens - 1)


@dataclass(frozen=True)
class TokenRows:
    """The tokens that one stack of layers computed in one pass, in the order of the hooks' rows.

    `rows` picks them out of what the hooks saw, which includes padding; None where there is none.
    """

    in_encoder: bool
    request: NDArray[np.uint32]
    position: NDArray[np.uint32]
    phase: NDArray[np.uint8]
    rows: torch.Tensor | None


def check_requests(requests: Sequence[TokenSequence]) -> None:
    """Refuse what cannot be run.

    Raises:
        InputError: no request is given, or a prompt is empty or longer than its sequence.
    """
    for number, request in enumerate(requests):
        if not 1 <= request.prompt_tokens <= len(request.tokens):
            raise InputError(
                f"request {number}: a prompt of {request.prompt_tokens} tokens in a sequence of {len(request.tokens)}: "
                "it has at least 1 and at most all of them"
            )
    if not requests:
        raise InputError("no request to record")


def decode(
    model: Any, requests: Sequence[TokenSequence], decoding: Decoding, first_request: int = 0
) -> Iterator[list[TokenRows]]:
    """Run `requests` as one batch; after each forward pass, the tokens that it computed.

    Draws depend on `decoding.seed` and `first_request`, the number of the batch's first request, alone: a recording
    that is continued draws what it would have drawn.
    """
    device = next(model.parameters()).device
    lengths = [request.prompt_tokens for request in requests]
    longest = max(lengths)
    tokens = torch.zeros((len(requests), longest), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, request in enumerate(requests):
        tokens[row, longest - lengths[row] :] = torch.tensor(request.tokens[: lengths[row]])
        mask[row, longest - lengths[row] :] = 1
    state = cached(model)
    generator = torch.Generator(device).manual_seed(decoding.seed * 1_000_003 + first_request)
    alive = list(range(len(requests)))
    logits = state.prefill(tokens.to(device), None if min(lengths) == longest else mask.to(device))
    yield state.prefill_rows(lengths, mask, first_request)
    for number in range(1, max(decoding.passes_after_prefill(request) for request in requests) + 1):
        given = [requests[at].tokens[lengths[at] + number - 1 : lengths[at] + number] for at in alive]
        chosen = _chosen(logits, given, decoding, generator)
        keep = [
            row
            for row, at in enumerate(alive)
            if number <= decoding.passes_after_prefill(requests[at])
        ]
        if decoding.end_tokens and not all(given):
            ended = [token in decoding.end_tokens for token in chosen.tolist()]  # the host waits for the GPU here
            keep = [row for row in keep if given[row] or not ended[row]]
        if not keep:
            return
        if len(keep) < len(alive):
            rows = torch.tensor(keep, device=device)
            state.keep(rows)
            chosen, alive = chosen[rows], [alive[row] for row in keep]
        logits = state.step(chosen[:, None])
        yield [
            TokenRows(
                in_encoder=False,
                request=np.array([first_request + at for at in alive], np.uint32),
                position=np.array([lengths[at] + number - 1 + state.start_tokens for at in alive], np.uint32),
                phase=np.full(len(alive), DECODE, np.uint8),
                rows=None,
            )
        ]


def _chosen(
    logits: torch.Tensor, given: Sequence[Sequence[int]], decoding: Decoding, generator: torch.Generator
) -> torch.Tensor:
    """The next token of every sequence [B]: the given one, or what the model says."""
    if all(given):
        return torch.tensor([each[0] for each in given], device=logits.device)
    if decoding.temperature > 0:
        shares = (logits.float() / decoding.temperature).softmax(-1)
        chosen = torch.multinomial(shares, 1, generator=generator)[:, 0]
    else:
        chosen = logits.argmax(-1)
    for row, each in enumerate(given):
        if each:
            chosen[row] = each[0]
    return chosen


def cached(model: Any) -> "_DecoderOnly | _EncoderDecoder":
    """A batch of sequences in `model`, with its KV cache as `cache`."""
    return _EncoderDecoder(model) if model.config.is_encoder_decoder else _DecoderOnly(model)


class _DecoderOnly:
    """A causal language model: the prompt is its first pass."""

    start_tokens = 0

    def __init__(self, model: Any) -> None:
        self._model = model
        # A vocabulary is wide: only the last position's logits are wanted.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(model) else {}
        self._mask: torch.Tensor | None = None
        self.cache: Any = None

    def prefill(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        self._mask = mask
        positions = {} if mask is None else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        return self._run(tokens, positions)

    def prefill_rows(self, lengths: Sequence[int], mask: torch.Tensor, first_request: int) -> list[TokenRows]:
        return [_prompt_rows(lengths, mask, first_request, in_encoder=False, device=self._device)]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._mask is None:
            return self._run(tokens, {})
        self._mask = torch.cat([self._mask, torch.ones_like(tokens)], dim=1)
        return self._run(tokens, {"position_ids": self._mask.sum(1, keepdim=True) - 1})

    def keep(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self._mask = None if self._mask is None else self._mask[rows]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device

    def _run(self, tokens: torch.Tensor, positions: dict[str, torch.Tensor]) -> torch.Tensor:
        output = self._model(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self.cache, use_cache=True,
            **positions, **self._last_only,
        )
        self.cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits


class _EncoderDecoder:
    """A sequence-to-sequence model: the encoder reads the prompt, the decoder starts with its start token."""

    start_tokens = 1

    def __init__(self, model: Any) -> None:
        self._model = model
        self._mask: torch.Tensor | None = None
        self.cache: Any = None
        self._encoded: Any = None

    def prefill(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        self._mask = mask
        self._encoded = self._model.get_encoder()(input_ids=tokens, attention_mask=mask)
        return self.step(torch.full_like(tokens[:, :1], self._model.config.decoder_start_token_id))

    def prefill_rows(self, lengths: Sequence[int], mask: torch.Tensor, first_request: int) -> list[TokenRows]:
        batch = len(lengths)
        return [
            _prompt_rows(lengths, mask, first_request, in_encoder=True, device=self._encoded.last_hidden_state.device),
            TokenRows(
                in_encoder=False,
                request=first_request + np.arange(batch, dtype=np.uint32),
                position=np.array(lengths, np.uint32),
                phase=np.full(batch, DECODE, np.uint8),
                rows=None,
            ),
        ]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        output = self._model(
            encoder_outputs=self._encoded, attention_mask=self._mask, decoder_input_ids=tokens,
            past_key_values=self.cache, use_cache=True,
        )
        self.cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]
        self._mask = None if self._mask is None else self._mask[rows]


def _prompt_rows(
    lengths: Sequence[int], mask: torch.Tensor, first_request: int, *, in_encoder: bool, device: torch.device
) -> TokenRows:
    """The tokens of all prompts, one prompt after another, and where they stand among the padding."""
    padded = min(lengths) < mask.shape[1]
    return TokenRows(
        in_encoder=in_encoder,
        request=np.repeat(first_request + np.arange(len(lengths), dtype=np.uint32), lengths),
        position=np.concatenate([np.arange(length, dtype=np.uint32) for length in lengths]),
        phase=np.full(sum(lengths), PREFILL, np.uint8),
        rows=mask.flatten().nonzero()[:, 0].to(device) if padded else None,
    )


def _parameters(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
