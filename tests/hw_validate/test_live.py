"""A trained model decodes with its experts offloaded: the outputs of all of them resident, and those of elsewhere."""

from pathlib import Path

import pytest
import torch

from hw_validate.live import decode, load_checkpoint
from moesim.errors import ConfigError
from moesim.policies.composition import parse

MODEL = Path(__file__).parents[2] / "traces" / "models" / "reference-8x16"
PROMPT = [17, 300, 45, 2048, 9]
TOKENS = 24


def live(device: str, dtype: torch.dtype, policy: str, slots: int):
    checkpoint, shape = load_checkpoint(MODEL, device, dtype)
    return decode(checkpoint, shape, parse(policy), slots, PROMPT, TOKENS, device), checkpoint


@pytest.fixture(scope="module")
def resident():
    return live("cpu", torch.float32, "all-resident", 128)


def test_all_resident_is_the_model_itself(resident):
    run, checkpoint = resident
    with torch.no_grad():
        out = checkpoint(torch.tensor([run.tokens[:-1]]), output_router_logits=True)
    error = (run.logits - out.logits[0]).norm() / out.logits[0].norm()
    assert error < 1e-5
    chosen = torch.stack([logits.topk(2).indices for logits in out.router_logits], dim=1).sort(-1).values
    assert torch.tensor(run.trace.experts[: TOKENS - 1].astype("int64")).sort(-1).values.equal(chosen)


@pytest.mark.parametrize(("policy", "slots"), [("on-demand", 0), ("lru", 2), ("lru", 32), ("least-stale", 12)])
def test_offloading_changes_no_bit_of_the_output(resident, policy, slots):
    run, _ = live("cpu", torch.float32, policy, slots)
    assert run.logits.equal(resident[0].logits)
    assert run.tokens == resident[0].tokens
    # what was executed is what the router chose, by the tags in the slots
    chosen = run.trace.experts[: TOKENS - 1].reshape(-1, 2)
    for event, tags in enumerate(run.executed):
        assert sorted(tags) == sorted(event % 8 * 16 + int(expert) for expert in chosen[event])


def test_policies_that_need_predictions_are_refused():
    checkpoint, shape = load_checkpoint(MODEL, "cpu", torch.float32)
    with pytest.raises(ConfigError, match="prefetch-and-refetch: live decoding has no predictions"):
        decode(checkpoint, shape, parse("prefetch-and-refetch"), 32, PROMPT, TOKENS, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_gpu_offloading_changes_no_bit_either():
    whole, checkpoint = live("cuda", torch.bfloat16, "all-resident", 128)
    for policy, slots in (("on-demand", 0), ("lru", 2), ("lru", 32), ("least-stale", 12)):
        run, _ = live("cuda", torch.bfloat16, policy, slots)
        assert run.logits.equal(whole.logits)
        assert run.tokens == whole.tokens
    with torch.no_grad():
        out = checkpoint(torch.tensor([whole.tokens[:-1]], device="cuda")).logits[0].float().cpu()
    # bfloat16 in other kernels: agreement to its precision, not to the bit
    assert (whole.logits - out).norm() / out.norm() < 3e-2
