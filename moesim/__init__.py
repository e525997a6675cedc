"""moesim: a discrete-event simulator of Mixture-of-Experts inference with offloaded experts."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # `import moesim; moesim.record(model, prompts)` without a second import, and without torch until it is called.
    if name == "record":
        import importlib

        return importlib.import_module("moesim.record")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
