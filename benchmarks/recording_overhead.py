"""`python -m benchmarks.recording_overhead [--device cuda]`: what recording adds to plain generation.

A model with random weights generates the same tokens plainly (the recorder's own loop without hooks, and transformers'
`generate`) and recorded (with ids and weights; with every score as well; with the `residual` predictor as well), rows
written to disk. The ways take turns in every round, so that a slow moment slows all of them; figures are medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OlmoeConfig, Qwen3MoeConfig

from moesim.record.decoding import Decoding, TokenSequence, decode
from moesim.record.moe_layers import MoeLayer, find_moe_layers
from moesim.record.predictors.predictor import foresee
from moesim.record.predictors.residual import Residual
from moesim.record.recorder import record_batch
from moesim.record.recording_folder import RecordingFolder
from moesim.trace import Request

# The published shapes; Qwen3's with a quarter of its experts, so that it fits beside other work.
SHAPES: dict[str, Callable[[], Any]] = {
    "tiny": lambda: OlmoeConfig(
        vocab_size=512, hidden_size=128, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4,
        num_experts=32, num_experts_per_tok=4, pad_token_id=None, eos_token_id=None,
    ),
    "olmoe-1b-7b": OlmoeConfig,
    "qwen3-30b-a3b/4": lambda: Qwen3MoeConfig(
        hidden_size=2048, moe_intermediate_size=768, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=32, num_experts_per_tok=8, norm_topk_prob=True,
    ),
}


def random_model(shape: str, device: str) -> Any:
    """The shape's model in bfloat16 (float32 on a CPU) with small random weights, made on the device itself."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=dtype)
    model = model.to_empty(device=device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1)
    # Rotary frequencies are computed, not drawn.
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model


def ways(
    model: Any, layers: list[MoeLayer], requests: list[TokenSequence], tokens: int, folder: Path
) -> dict[str, Callable[[], object]]:
    """What is compared, by name; each generates `tokens` tokens of every request."""
    decoding = Decoding(max_new_tokens=tokens)
    prompt = torch.tensor([list(each.tokens) for each in requests], device=next(model.parameters()).device)

    @torch.inference_mode()
    def plain() -> None:
        for _ in decode(model, requests, decoding):
            pass

    def generate() -> None:
        model.generate(prompt, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)

    def record(**options: Any) -> None:
        out = RecordingFolder(folder / "trace.safetensors", {"at": time.monotonic_ns()})
        for piece in record_batch(model, layers, requests, decoding, **options):
            out.append(piece)
        out.commit([Request(request=at, kind="random") for at in range(len(requests))])
        out.close()
        for path in out.path.iterdir():
            path.unlink()

    predictor = {"residual": partial(foresee, Residual(layers))}
    return {
        "plain": plain,
        "transformers generate": generate,
        "ids and weights": record,
        "and every score": partial(record, all_scores=True),
        "and a predictor": partial(record, all_scores=True, predictors=predictor),
    }


def seconds(way: Callable[[], object], device: str) -> float:
    """Wall clock of one call, the device idle before and after."""
    synchronize = torch.cuda.synchronize if device != "cpu" else lambda: None
    synchronize()
    start = time.perf_counter()
    way()
    synchronize()
    return time.perf_counter() - start


def measure(
    shape: str, device: str, batches: Iterable[int], prompt: int, tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """A row per batch size and way."""
    model = random_model(shape, device)
    layers = find_moe_layers(model)
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    rows = []
    for batch in batches:
        ids = torch.randint(1, vocabulary, (batch, prompt), generator=generator).tolist()
        requests = [TokenSequence("random", each, prompt) for each in ids]
        with tempfile.TemporaryDirectory() as folder:
            compared = ways(model, layers, requests, tokens, Path(folder))
            for way in compared.values():
                seconds(way, device)  # kernels are chosen, memory is taken
            taken: dict[str, list[float]] = {name: [] for name in compared}
            for _ in range(rounds):
                for name, way in compared.items():
                    taken[name].append(seconds(way, device))
        # Ratios within a round, then their median: what slows a round slows both.
        for name, each in taken.items():
            overhead = statistics.median(one / other for one, other in zip(each, taken["plain"], strict=True)) - 1
            rows.append({
                "shape": shape, "device": device, "batch": batch, "prompt_tokens": prompt, "new_tokens": tokens,
                "way": name, "ms_per_pass": round(1e3 * statistics.median(each) / tokens, 3),
                "overhead": round(overhead, 4),
            })
    return rows


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recording_overhead", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, help="by default tiny on a CPU, olmoe-1b-7b elsewhere")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    shape = given.shape or ("tiny" if given.device == "cpu" else "olmoe-1b-7b")
    rows = measure(shape, given.device, given.batch, given.prompt, given.tokens, given.rounds)
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{shape} on {torch.cuda.get_device_name() if given.device != 'cpu' else 'a CPU'}\n")
    print("| batch | | ms per pass | over plain |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['batch']} | {row['way']} | {row['ms_per_pass']:.2f} | {100 * row['overhead']:+.1f} % |")


if __name__ == "__main__":
    main()
