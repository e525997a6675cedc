"""Recording: a transformers MoE model in, a `moesim.trace.Trace` out.

This package needs the extra `record` (torch and transformers). It reads the model through forward hooks on the
router modules and on what stands around them; it holds no model code of its own.

    moe_layers.py       where the routers of a model are, and what feeds them
    capture.py          the hooks: what routers, residual stream and experts saw in a forward pass
    predictors/         what a router will choose, foreseen from what is known now
    recorder.py         requests through prefill and decode into a Trace
"""
