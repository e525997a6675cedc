"""Machines of small figures and engines of every kind, drawn at random, and a model small enough for both."""

from hypothesis import strategies as st

from moesim.engine import EngineSpec, Launches
from moesim.model import ModelSpec
from tests.plain_hardware import PlainHardware

ns = st.integers(0, 40)
HARDWARE = st.builds(
    PlainHardware, link_bytes_per_s=st.sampled_from([1e8, 1e9, 3e9]), copy_start_up_ns=ns, copy_descriptor_ns=ns,
    enqueue_copy_ns=ns, enqueue_kernel_ns=ns, enqueue_graph_ns=ns, record_event_ns=ns, wait_event_ns=ns,
    read_back_ns=ns, event_latency_ns=ns, loop_layer_ns=ns, switch_ns=ns,
    kernels_ns=st.fixed_dictionaries(dict.fromkeys(("attention", "router", "experts", "head", "dense layer"), ns)),
)
ENGINES = st.builds(
    EngineSpec, name=st.just("test"), source=st.just("test"), mode=st.sampled_from(["eager", "graph"]),
    experts_captured=st.booleans(), copies_per_expert=st.integers(1, 3), start=st.sampled_from(["all", "each"]),
    read_back=st.sampled_from(["blocking", "overlapped"]), prefill=st.sampled_from(["stream", "demand"]),
    launches=st.builds(
        Launches, attention=st.integers(1, 4), router=st.integers(1, 3), experts=st.integers(0, 3),
        experts_each=st.integers(0, 2), head=st.integers(1, 3),
    ),
    last_layer_reused=st.booleans(),
)

MODEL = ModelSpec(
    name="tiny", source="test", layers=4, experts=8, top_k=2, hidden=10, expert_intermediate=2, heads=1, kv_heads=1,
    head_size=10, vocabulary=100, dense_layers=[1], dense_intermediate=4,
)
"""Four layers, three of them with experts."""
