"""Tables of measured times: a JSON file of products on one GPU, such as ships for an H100 and as ``measure`` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmot_asp.files import replacing

Array = npt.NDArray[np.float64]

_FOLDER = Path(__file__).parent / "timings"
SHIPPED = {"H100": _FOLDER / "h100.json", "H100-tuned": _FOLDER / "h100_tuned.json"}
"""Tables that come with the package. Of the second the dense kernels were searched for, too."""

_UNITS = "microseconds per product"
_SHAPES = "y[M, N] = x[M, K] @ w[N, K].T, w 2:4 along K"


@dataclass(frozen=True)
class TimedProduct:
    """The times of one product, in microseconds.

    Attributes:
        precision: ``"fp16"`` or ``"int8"``.
        M: rows, positions.
        N: output channels.
        K: what is summed over.
        dense_default_us: of the algorithm that cuBLAS takes by itself.
        dense_us: of the better of that and the one that a search finds.
        sparse_default_us: of the algorithm that cuSPARSELt takes by itself.
        sparse_us: of the better of that and the one that its search finds.
    """

    precision: str
    M: int
    N: int
    K: int
    dense_default_us: float
    dense_us: float
    sparse_default_us: float
    sparse_us: float


@dataclass(frozen=True)
class TimingTable:
    """Times of products on one GPU, and how they were measured.

    Attributes:
        gpu: its name.
        multiprocessors: streaming multiprocessors that it has.
        driver: version of its driver.
        date: of the measurement.
        dense, sparse: how, with which versions.
        rows: the products.
    """

    gpu: str
    multiprocessors: int
    driver: str
    date: str
    dense: str
    sparse: str
    rows: tuple[TimedProduct, ...]

    @property
    def dense_was_searched(self) -> bool:
        """Whether the dense times are of the fastest algorithm, as the 2:4 ones, and not of the library's default."""
        return any(row.dense_us < row.dense_default_us for row in self.rows)

    def of(self, precision: str) -> tuple[Array, Array, Array]:
        """(products, 3) M, N and K of the products in a precision, and their times, dense and 2:4."""
        rows = [row for row in self.rows if row.precision == precision]
        sizes = np.array([(row.M, row.N, row.K) for row in rows], np.float64).reshape(-1, 3)
        return sizes, np.array([row.dense_us for row in rows]), np.array([row.sparse_us for row in rows])

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Writes the table as JSON, a product on each line."""
        facts = {**asdict(self), "units": _UNITS, "shapes": _SHAPES}
        del facts["rows"]
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in facts.items()]
        rows = ",\n".join(f"  {json.dumps(asdict(row))}" for row in self.rows)
        with replacing(path, overwrite=overwrite, what="a table of times") as written:
            written.write_text("\n".join(["{", *lines, ' "rows": [', rows, " ]", "}"]) + "\n", encoding="utf-8")


def read_table(path: Path) -> TimingTable:
    """A table from its file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no such table.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(_row(row) for row in table["rows"])
        texts = {name: str(table.get(name, "")) for name in ("driver", "date", "dense", "sparse")}
        read = TimingTable(str(table.get("gpu", path.stem)), int(table["multiprocessors"]), **texts, rows=rows)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no table of times: {type(error).__name__} {error}") from error
    numbers = [value for row in rows for value in (row.M, row.N, row.K, row.dense_us, row.sparse_us)]
    if not all(np.isfinite(value) and value > 0 for value in (read.multiprocessors, *numbers)):
        raise ValueError(f"{str(path)!r} is no table of times: sizes, times and multiprocessors must be positive")
    return read


def _row(row: Any) -> TimedProduct:
    times: dict[str, float] = {}
    for kind in ("sparse", "dense"):
        best = float(row[f"{kind}_us"])
        times |= {f"{kind}_default_us": float(row.get(f"{kind}_default_us", best)), f"{kind}_us": best}
    return TimedProduct(str(row["precision"]), int(row["M"]), int(row["N"]), int(row["K"]), **times)


def sizes_of_shipped(precision: str) -> Sequence[tuple[int, int, int]]:
    """M, N and K of the products of the table that ships: from 32 to 100,352 rows, layers of ResNet50 and BERT."""
    rows = read_table(SHIPPED["H100"]).rows
    return [(row.M, row.N, row.K) for row in rows if row.precision == precision]
