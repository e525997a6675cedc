"""Recording: a transformers MoE model in, a `moesim.trace.Trace` out.

`moesim.record(model, prompts, ...)` is `moesim.record.session.record`: this package can be called. The one word names
both the act and the place where its parts are, so that neither needs a second name; a type checker, which does not
know that modules can be called, is served by `from moesim.record.session import record`.

It needs the extra `record` (torch and transformers), and imports them when it is called. It reads the model through
forward hooks on the router modules and on what stands around them; it holds no model code of its own.

    session.py          one recording from prompts to trace: what the command and `moesim.record(...)` run
    checkpoint.py       a model from disk or hub, refused before its weights are read if need be
    prompts.py          what to record
    moe_layers.py       where the routers of a model are, and what feeds them
    router_layout.py    what a router returns, whatever its class
    capture.py          the hooks: what routers, residual stream and experts saw in a forward pass
    decoding.py         batches through prefill and decode
    recorder.py         what the hooks saw, as rows of a trace
    recording.py        those rows, before anyone has said what they are of
    recording_folder.py rows on disk while a recording is made, so that it can be continued
    memory.py           what a recording takes, said before it starts
    weights.py          which weights a result is of
    predictors/         what a router will choose, foreseen from what is known now
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.trace import Trace


class _Record(ModuleType):
    """This package, callable."""

    def __call__(self, model: Any, prompts: Any, **options: Any) -> "Trace":
        """`moesim.record.session.record`, which documents the options."""
        try:
            from moesim.record.session import record
        except ModuleNotFoundError as error:
            raise InputError(f"moesim.record needs {error.name}: install moesim[record]") from None
        return record(model, prompts, **options)


sys.modules[__name__].__class__ = _Record
