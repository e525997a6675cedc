"""numba's compiler, where it is installed. What it compiled is kept on disk beside the source."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

AVAILABLE = find_spec("numba") is not None


def compiled(function: Function) -> Function:
    """The function in machine code; as it is where there is no compiler, and then nobody calls it."""
    if not AVAILABLE:
        return function
    import numba

    return cast(Function, numba.njit(cache=True)(function))


def inlined(function: Function) -> Function:
    """The same, written into whoever calls it: a call that passes a dozen arrays costs more than what it does."""
    if not AVAILABLE:
        return function
    import numba

    return cast(Function, numba.njit(cache=True, inline="always")(function))
