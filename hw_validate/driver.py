"""The few calls of the CUDA driver that the replay makes for every expert, without torch in between.

torch's own copy takes 9 to 50 µs of host time, the driver's 2; with 384 copies a token that is the difference between
an engine that is bound by the link and one that is bound by its host. Everything else goes through torch, whose
context, streams and memory these calls share.

Raises HardwareError, one line, when the driver refuses.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from moesim.errors import InputError

_HOST, _SIZE, _INT, _UINT, _DEVICE = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint, ctypes.c_uint64,
)


class HardwareError(InputError):
    """The machine lacks something that was asked of it; says what, and what there is."""


class DoesNotFitError(HardwareError):
    """Memory, the host's or the GPU's, is too small for what is asked of it; less would fit."""


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise HardwareError("no CUDA driver (libcuda.so.1) on this machine") from None
    for name, *types in (
        ("cuMemcpyHtoDAsync_v2", _DEVICE, _HOST, _SIZE, _HOST),
        ("cuMemHostRegister_v2", _HOST, _SIZE, _UINT),
        ("cuMemHostUnregister", _HOST),
        ("cuModuleLoadData", _HOST, ctypes.c_char_p),
        ("cuModuleGetFunction", _HOST, _HOST, ctypes.c_char_p),
        ("cuLaunchKernelEx", _HOST, _HOST, _HOST, _HOST),
        ("cuGetErrorName", _INT, _HOST),
    ):
        getattr(library, name).argtypes = types
    return library


def _check(status: int, what: str) -> None:
    if status:
        name = ctypes.c_char_p()
        _library().cuGetErrorName(status, ctypes.byref(name))
        raise HardwareError(f"{what}: {(name.value or b'unknown error').decode()}")


def pin(address: int, size_bytes: int) -> None:
    """Page-lock a piece of host memory, so that the copy engine reads it without the host."""
    import torch

    torch.zeros(1, device="cuda")  # makes the context that the driver's calls share
    _check(_library().cuMemHostRegister_v2(address, size_bytes, 0), f"pinning {size_bytes / 1e9:.1f} GB of host memory")


def unpin(address: int) -> None:
    """Give back what `pin` locked."""
    _check(_library().cuMemHostUnregister(address), "releasing pinned memory")


def host_to_device() -> Callable[[int, int, int, int], int]:
    """The asynchronous copy (device address, host address, bytes, stream) -> status, 0 for success.

    The bare function: the caller's loop is too hot for a wrapper, and checks the status itself.
    """
    copy: Callable[[int, int, int, int], int] = _library().cuMemcpyHtoDAsync_v2
    return copy


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid_x", _UINT), ("grid_y", _UINT), ("grid_z", _UINT),
        ("block_x", _UINT), ("block_y", _UINT), ("block_z", _UINT),
        ("shared_bytes", _UINT), ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p), ("attribute_count", _UINT),
    )


class Launch:
    """A kernel with its arguments in place: the caller changes what changes and enqueues it again."""

    def __init__(self, function: ctypes.c_void_p, arguments: Sequence[Any], threads: int) -> None:
        self._function = function
        self._kept = list(arguments)  # the driver reads the arguments through their addresses
        self._pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        self._config = _LaunchConfig(1, 1, 1, threads, 1, 1, 0, None, None, 0)
        self._config_address = ctypes.addressof(self._config)
        self._enqueue = _library().cuLaunchKernelEx

    def __call__(self, stream: int, blocks_x: int, blocks_y: int = 1) -> None:
        """Enqueue on a stream; the arguments are read now."""
        config = self._config
        config.grid_x, config.grid_y, config.stream = blocks_x, blocks_y, stream
        status = self._enqueue(self._config_address, self._function, self._pointers, None)
        if status:
            _check(status, "launching a kernel")


class Module:
    """CUDA C++ compiled for the present GPU."""

    def __init__(self, source: Path, **constants: int) -> None:
        """Compile `source` with `constants` as macros. Raises HardwareError with the compiler's first complaint."""
        import torch
        from cuda.bindings import nvrtc

        major, minor = torch.cuda.get_device_capability()
        options = [f"--gpu-architecture=sm_{major}{minor}", "--std=c++17"]
        options += [f"-D{name}={value}" for name, value in constants.items()]
        _, program = nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], [])
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [each.encode() for each in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            _, length = nvrtc.nvrtcGetProgramLogSize(program)
            log = bytearray(length)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise HardwareError(f"{source.name}: {log.decode(errors='replace').strip().splitlines()[0]}")
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        self._image = bytes(size)
        nvrtc.nvrtcGetCUBIN(program, self._image)
        self._module = ctypes.c_void_p()
        _check(_library().cuModuleLoadData(ctypes.byref(self._module), self._image), f"loading {source.name}")

    def launch(self, kernel: str, arguments: Sequence[Any], threads: int) -> Launch:
        """A kernel of this module with ctypes values as its arguments."""
        function = ctypes.c_void_p()
        _check(
            _library().cuModuleGetFunction(ctypes.byref(function), self._module, kernel.encode()), f"finding {kernel}"
        )
        return Launch(function, arguments, threads)
