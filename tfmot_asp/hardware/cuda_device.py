"""Whether there is a CUDA device that CuPy can use here, and if not, what to do about it."""

from __future__ import annotations

OLDEST_CAPABILITY = 80
"""Compute capability 8.0 (A100): the first with sparse Tensor Cores, and with warp-wide minima."""


def why_no_cupy() -> str | None:
    """Why CuPy cannot be imported; None if it can."""
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); install tfmot-asp[cuda12] or tfmot-asp[cuda13]"
    return None


def why_no_device() -> str | None:
    """Why CuPy, which can be imported, has no device; None if it has one."""
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own CUDARuntimeError, which cannot be named without CuPy
        return f"CuPy finds no usable CUDA driver ({error})"
    return None if count else "there is no CUDA device"


def free_bytes() -> int:
    """Of the device's memory, what nothing uses or CuPy holds ready."""
    import cupy

    return int(cupy.cuda.Device().mem_info[0] + cupy.get_default_memory_pool().free_bytes())
