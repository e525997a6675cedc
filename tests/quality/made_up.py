"""Quality files of made-up numbers."""

from moesim.quality.stored import Interval, Measured, Method, Quality, Text


def measured(mode, *, predictor=None, cache=None, increase=(0.1, 0.05, 0.15), parameters=None, variant=None):
    spread = Interval(value=increase[0], low=increase[1], high=increase[2])
    one = Interval(value=1, low=1, high=1)
    return Measured(
        mode=mode, predictor=predictor, parameters=parameters or variant or {}, variant=variant or {},
        cache_fraction=cache, passes="whole" if cache is None else "stepped", perplexity=one,
        perplexity_increase=spread, kl_nats=one, top1_agreement=one, weight_executed=None,
    )


def quality(*modes, weights="0" * 64):
    return Quality(
        model="Made", weights_sha256=weights, layers=2, experts=4, top_k=2, dtype="float32", device="cpu",
        text=Text(
            source="text.txt", sha256="1" * 64, tokens=64, tokens_measured=40, blocks=2, block_tokens=32,
            prompt_tokens=4, warmup_tokens=0, lanes=1,
        ),
        fitted={}, method=Method(description="by hand", confidence=0.95, resamples=1, seed=0), measured=list(modes),
        left_out=[], recorder_version="0",
    )
