"""Measures a table of times on this machine's GPU, in the form of the one that ships."""

from __future__ import annotations

import datetime
import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tfmot_asp.files import check_target
from tfmot_asp.hardware import device_values, libraries, sparse_device
from tfmot_asp.hardware.cost_model import LEAST_PRODUCTS, OPERAND_BYTES, PRECISIONS, RESULT_BYTES
from tfmot_asp.hardware.precision import check_precision
from tfmot_asp.hardware.timing_table import TimedProduct, TimingTable, sizes_of_shipped
from tfmot_asp.types import StrPath

logger = logging.getLogger(__name__)

Sizes = tuple[int, int, int]

_METHOD = f"CUDA graph of {sparse_device.PER_GRAPH} products, median of {sparse_device.REPEATS}"
_VALUES = "values standard normal (int8: times 32, rounded)"
_SHARE = 0.8  # of the free memory that a product may take


def measure(
    path: StrPath | None = None,
    *,
    precisions: Sequence[str] = PRECISIONS,
    products: Iterable[Sizes] | None = None,
    overwrite: bool = False,
    on_product: Callable[[int, int], None] | None = None,
) -> TimingTable:
    """Times matrix products on this machine's GPU, dense (cuBLAS) and 2:4 (cuSPARSELt), for ``gpu="file.json"``.

    It needs Linux, an NVIDIA GPU of compute capability 8.0 or newer, CuPy (``tfmot-asp[cuda12]`` or ``[cuda13]``) and
    the wheel ``nvidia-cusparselt-cu12`` or ``-cu13``. Each product is run 20 times in a CUDA graph, and the median of 8
    graphs is taken; of each library the better of its default algorithm and the one that a search finds, among up to
    16 of cuBLASLt's, or by cuSPARSELt's own. Values are random normal ones (in int8 quantized), the dense weight is not
    pruned, the 2:4 one by magnitude. All results are compared. Leave the GPU to it alone.

    Args:
        path: a ``.json`` file to write; None only returns the table.
        precisions: ``"fp16"``, ``"int8"`` or both.
        products: sizes (M, N, K) to time; by default those of the table that ships, 166 in both precisions. What does
            not fit the GPU's free memory is left out, and the log says so.
        overwrite: whether to replace a file.
        on_product: called before each product with the number of those done and of all.

    Returns:
        The table.

    Raises:
        ValueError: if a precision, a size or the file's suffix is none, or there are too few products for a table.
        FileExistsError: if the file exists, unless ``overwrite``.
        RuntimeError: if something is missing on this machine, a library fails, or both compute different results;
            nothing is written then.

    Example:
        >>> tfmot_asp.hardware.measure("mine.json")
        >>> tfmot_asp.sparsity_report(model, gpu="mine.json", batch_size=32)
    """
    target = None if path is None else Path(path)
    if target is not None:
        if target.suffix != ".json":
            raise ValueError(f"a table of times is a .json file, got {str(target)!r}")
        check_target(target, overwrite=overwrite, what="a table of times", folder=False)
    names = [check_precision(name, PRECISIONS, "precisions") for name in dict.fromkeys(precisions)]
    given = None if products is None else list(products)
    wanted = [(name, size) for name in names for size in _checked(name, given)]
    device = sparse_device.SparseDevice()
    fitting = [(name, size) for name, size in wanted if needed_bytes(name, size) <= _SHARE * device.free_bytes]
    if len(fitting) < len(wanted):
        logger.warning("%d of %d products do not fit the GPU's free memory", len(wanted) - len(fitting), len(wanted))
    rows = []
    for i, (name, size) in enumerate(fitting):
        if on_product is not None:
            on_product(i, len(fitting))
        try:
            samples = device.times(name, *size)
        except RuntimeError as error:
            raise RuntimeError(f"product {' x '.join(map(str, size))} in {name}: {error}") from error
        dense, dense_searched, sparse, sparse_searched = (round(statistics.median(one), 2) for one in samples)
        rows.append(TimedProduct(name, *size, dense, min(dense, dense_searched), sparse, min(sparse, sparse_searched)))
    if on_product is not None:
        on_product(len(fitting), len(fitting))
    versions = device.versions
    table = TimingTable(
        gpu=device.gpu,
        multiprocessors=device.multiprocessors,
        driver=device.driver,
        date=datetime.date.today().isoformat(),
        dense=f"cuBLAS {versions['cuBLAS']} through CuPy {versions['CuPy']} (fp16 -> fp16 summed in fp32, int8 -> "
        f"int32), {_METHOD}; {_VALUES}, weight not pruned; dense_default_us: cublasGemmEx's default algorithm, "
        f"dense_us: the better of that and the fastest of up to {sparse_device.ALGORITHMS} that cuBLASLt's heuristic "
        "offers",
        sparse=f"cuSPARSELt {versions['cuSPARSELt']}, structured operand N x K, activations K x M, output N x M "
        "column-major, same CUDA graph and values, of every four weights the two largest kept; sparse_default_us: the "
        "library's default algorithm, sparse_us: the better of that and cusparseLtMatmulSearch's",
        rows=tuple(rows),
    )
    if target is not None:
        table.save(target, overwrite=overwrite)
    return table


def needed_bytes(precision: str, size: Sizes) -> int:
    """Device memory that a product takes at most.

    Operands, the weight once more compressed and as much again to compress it; two results, cuSPARSELt's workspace of
    a float for each of their values; and what a block of values needs while they are made or compared.
    """
    m, n, k = size
    operand, result = OPERAND_BYTES[precision], RESULT_BYTES[precision]
    block = device_values.BLOCK * device_values.BYTES_PER_VALUE
    return operand * (m + 3 * n) * k + (2 * result + 4) * m * n + block


def _checked(precision: str, given: Sequence[Sizes] | None) -> Sequence[Sizes]:
    if given is None:
        return sizes_of_shipped(precision)
    multiple = libraries.ALIGNMENT[precision]
    for size in given:
        m, n, k = size
        if min(size) < 1 or m % multiple.dense or libraries.misaligned(precision, m=None, n=n, k=k):
            raise ValueError(
                f"product {m} x {n} x {k}: in {precision} M must be a multiple of {multiple.dense}, and N and K of "
                f"{multiple.sparse}"
            )
    if len(given) < LEAST_PRODUCTS:
        raise ValueError(f"a table needs at least {LEAST_PRODUCTS} products, got {len(given)}")
    return given
