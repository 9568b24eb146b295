"""Finds, checks and compiles the CUDA side: what is there is used, and what is missing is said."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

SOURCE = "search.cu"


def source_path(name: str = SOURCE) -> Path:
    """Path of a CUDA source: inside the package in an installed wheel, beside it in a source tree.

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    package = Path(__file__).parents[2]
    for folder in (package / "cuda", package.parent / "cuda"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{name} is neither in {package / 'cuda'} nor in {package.parent / 'cuda'}: reinstall tfmot-asp"
    )


def options(n: int, keep: int) -> tuple[str, ...]:
    """Compiler options for stripes of n of which ``keep`` values are kept."""
    return ("--std=c++14", f"-DSTRIPE={n}", f"-DKEEP={keep}")


def why_not(needed_bytes: int = 0) -> str | None:
    """Says why a search that takes so much device memory cannot run on CUDA here, or None if it can."""
    from tfmot_asp.hardware import cuda_device  # here: searches on the CPU need none of it

    if (problem := cuda_device.why_no_cupy() or cuda_device.why_no_device()) is not None:
        return problem
    import cupy

    capability, oldest = cupy.cuda.Device().compute_capability, cuda_device.OLDEST_CAPABILITY
    if int(capability) < oldest:
        return f"the CUDA device has compute capability {capability}, and {oldest} or newer is needed"
    free = cuda_device.free_bytes()
    if needed_bytes > free:
        return f"the search needs {needed_bytes / 2**30:.1f} GiB of device memory, and {free / 2**30:.1f} GiB are free"
    return None


@functools.lru_cache(maxsize=32)
def module(n: int, keep: int, device: int) -> Any:
    """The compiled kernels for one pattern on one device (a ``cupy.RawModule``), compiled on first use."""
    import cupy

    return cupy.RawModule(code=source_path().read_text(encoding="utf-8"), options=options(n, keep))
