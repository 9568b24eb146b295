"""``tfmot-asp measure``: a table of times of this machine's GPU."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tfmot_asp.cli.terminal import Console
from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.progress_bar import progress_bar


def estimate(arguments: argparse.Namespace, console: Console) -> int:
    """Says what one product takes, dense and 2:4."""
    from tfmot_asp.hardware.cost_model import estimate as estimate_product

    sizes, gpu, precision = (arguments.m, arguments.n, arguments.k), arguments.gpu, arguments.precision
    found = estimate_product(*sizes, precision=precision, gpu=gpu)
    summary = (
        f"{' x '.join(map(str, sizes))} on {gpu} in {precision}: dense {found.dense_us:.1f} us, 2:4 "
        f"{found.sparse_us:.1f} us; x{found.speedup:.2f}, give or take {found.error:.0%}"
    )
    data = {"gpu": gpu, "precision": precision, **asdict(found), "speedup": found.speedup}
    console.result(Document([summary]), dict(zip("MNK", sizes, strict=True)) | data)
    return 0


def measure(arguments: argparse.Namespace, console: Console) -> int:
    """Times products dense and 2:4, and writes the table that ``--gpu FILE.json`` takes."""
    from tfmot_asp.hardware.cost_model import PRECISIONS
    from tfmot_asp.hardware.measurement import measure as measure_products

    with progress_bar(1, "products", console.progress, "product") as bar:

        def on_product(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        times = measure_products(
            arguments.output,
            precisions=PRECISIONS if arguments.precision is None else (arguments.precision,),
            overwrite=arguments.force,
            on_product=on_product,
        )
    header = ("precision", "M", "N", "K", "dense us", "2:4 us", "gain")
    rows = [
        (
            *map(str, (row.precision, row.M, row.N, row.K, row.dense_us, row.sparse_us)),
            f"{row.dense_us / row.sparse_us:.2f}",
        )
        for row in times.rows
    ]
    summary = [
        f"Microseconds on {times.gpu} (driver {times.driver})",
        f"Wrote {arguments.output}: give it to --gpu",
    ]
    console.result(Document(summary, [Table(header, rows)]), {"output": str(arguments.output), **asdict(times)})
    return 0
