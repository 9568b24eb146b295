"""What the products of whole models take on a GPU, measured, beside what `hardware.estimate` says of them.

    python benchmarks/products.py --measure mine.json                                         # on a GPU
    python benchmarks/products.py --table tfmot_asp/hardware/timings/h100_tuned.json          # anywhere

The sizes are those of model_sizes.json, which model_sizes.py writes; M is padded to what the libraries take. No size is
interpolated on the measured side. Estimates are those of `--gpu`, by default from the table of 166 products whose dense
kernels were not searched for; the measurements here are another table. Sums are over the products that have a 2:4
kernel in the precision; of each the faster kernel counts, as a library takes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from model_sizes import SIZES

from tfmot_asp.hardware import estimate, libraries
from tfmot_asp.hardware.cost_model import PRECISIONS
from tfmot_asp.hardware.measurement import measure
from tfmot_asp.hardware.timing_table import TimingTable, read_table

Size = tuple[int, int, int]


class Product(NamedTuple):
    """A product of a model.

    Attributes:
        size: M, N and K.
        calls: how often it is made.
    """

    size: Size
    calls: int

    def padded(self, precision: str) -> Size:
        """With as many rows as the libraries take."""
        multiple = libraries.ALIGNMENT[precision].dense
        m, n, k = self.size
        return -(-m // multiple) * multiple, n, k


def products_of(record: dict[str, Any], batch: str, precision: str) -> list[Product]:
    """Those of a model that have a 2:4 kernel."""
    products = record["products"][batch]
    return [Product(tuple(p["size"]), p["calls"]) for p in products if precision in p["sparse_in"]]


def measured(models: dict[str, Any], path: Path) -> None:
    """Times all sizes of all models."""
    tables = []
    for precision in PRECISIONS:
        sizes = {
            product.padded(precision)
            for record in models.values()
            for batch in record["products"]
            for product in products_of(record, batch, precision)
        }
        print(f"{precision}: {len(sizes)} sizes", flush=True)
        tables.append(measure(precisions=[precision], products=sorted(sizes)))
    rows = tuple(row for table in tables for row in table.rows)
    TimingTable(**{**vars(tables[0]), "rows": rows}).save(path, overwrite=True)


def table(models: dict[str, Any], times: TimingTable, gpu: str) -> None:
    """Prints, for each model, batch and precision, what was estimated and what was measured."""
    print(f"{times.gpu}, driver {times.driver}, {times.date}\ndense: {times.dense}\n2:4: {times.sparse}")
    print(f"estimates: gpu={gpu!r}\n")
    known = {(row.precision, row.M, row.N, row.K): row for row in times.rows}
    print("| model | batch | precision | products | dense, ms: estimated, measured | gain: estimated, measured |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, record in models.items():
        for batch in record["products"]:
            for precision in PRECISIONS:
                sums, count = np.zeros(4), 0
                for product in products_of(record, batch, precision):
                    row = known.get((precision, *product.padded(precision)))
                    if row is None:
                        continue
                    guess = estimate(*product.padded(precision), precision=precision, gpu=gpu)
                    best = min(guess.dense_us, guess.sparse_us), min(row.dense_us, row.sparse_us)
                    sums += product.calls * np.array([guess.dense_us, row.dense_us, *best])
                    count += product.calls
                dense, gain = sums[:2] / 1000, sums[:2] / sums[2:]
                cells = (f"{dense[0]:.3f}, {dense[1]:.3f}", f"x {gain[0]:.2f}, x {gain[1]:.2f}")
                print(f"| {' | '.join((name, batch, precision, str(count), *cells))} |")
    print(
        "\n| precision | sizes | median error: dense | 2:4 | speed-up | gains above 1.1 promised where there is none |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for precision in PRECISIONS:
        rows = [row for row in times.rows if row.precision == precision]
        guesses = [estimate(row.M, row.N, row.K, precision=precision, gpu=gpu) for row in rows]
        pairs = list(zip(guesses, rows, strict=True))
        off = (
            [abs(guess.dense_us / row.dense_us - 1) for guess, row in pairs],
            [abs(guess.sparse_us / row.sparse_us - 1) for guess, row in pairs],
            [abs(guess.speedup * row.sparse_us / row.dense_us - 1) for guess, row in pairs],
        )
        broken = sum(guess.speedup > 1.1 and row.dense_us <= row.sparse_us for guess, row in pairs)
        medians = (f"{100 * statistics.median(errors):.1f} %" for errors in off)
        print(f"| {' | '.join((precision, str(len(rows)), *medians, str(broken)))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FILE", help="where to write what is measured here")
    parser.add_argument("--table", type=Path, metavar="FILE", help="what was measured")
    parser.add_argument("--gpu", default="H100", help="whose times the estimates are made of (H100)")
    arguments = parser.parse_args()
    if (arguments.measure is None) == (arguments.table is None):
        parser.error("give one of --measure and --table")
    models = json.loads(SIZES.read_text(encoding="utf-8"))
    if arguments.measure is not None:
        measured(models, arguments.measure)
    table(models, read_table(arguments.measure or arguments.table), arguments.gpu)


if __name__ == "__main__":
    main()
