# ruff: noqa: RUF001 (× is the right sign in a table)
"""Measures `tfmot_asp.search`: quality and time by effort, references, kernel rate, first call, trained weights.

    python benchmarks/search.py                        # tables, references, curve: some minutes
    python benchmarks/search.py --references all       # also stripe groups of 12 and of 512 columns: half an hour
    python benchmarks/search.py --models               # also all groups of ResNet50, VGG16 and BERT
    python benchmarks/search.py --onnx a.onnx b.onnx   # also the trained kernels in these files (needs onnx)
    python benchmarks/search.py --device cuda          # the same on a GPU, beside the CPU, results compared

Matrices are `np.random.seed(1); np.random.rand(rows, columns)`. Every result's efficacy is computed again here, in
NumPy, from the permutation alone. Times are wall clock, the least of several for short ones; compiled code is warm
unless the line says otherwise. "CPU s / 2" is the processor time used, over two cores: what the wall clock would show
on an idle machine. On a busy one others' load is the largest error of the wall-clock figures; it is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import references
from model_sizes import SIZES as MODEL_SIZES

from tfmot_asp.permutation.search import cpu, search, search_many
from tfmot_asp.permutation.search.batches import batches
from tfmot_asp.permutation.search.effort import EFFORTS, Workload
from tfmot_asp.permutation.search.fixed_point import encode, survey
from tfmot_asp.permutation.search.scores import Scores

SIZES = [(64, 128), (256, 256), (512, 512), (2048, 2048)]
TARGETS = {  # efficacy in per cent, seconds on two idle cores
    (64, 128): {"fast": (35.5, 0.02), "balanced": (38.0, 0.3), "thorough": (39.2, 3)},
    (256, 256): {"fast": (28.0, 0.1), "balanced": (29.2, 1), "thorough": (30.3, 8)},
    (512, 512): {"fast": (21.9, 0.3), "balanced": (22.5, 2), "thorough": (23.0, 12)},
    (2048, 2048): {"fast": (12.0, 2), "balanced": (12.4, 5), "thorough": (12.7, 60)},
}


def matrix_of(columns: int, rows: int) -> np.ndarray:
    np.random.seed(1)
    return np.random.rand(rows, columns)


def timed(function: Callable[[], Any], least: float = 0.5, most: int = 20) -> tuple[float, float, Any]:
    """Least wall time of repeated calls, CPU seconds of that call, and its result."""
    best, busy, result = float("inf"), 0.0, None
    begun = time.perf_counter()
    for _ in range(most):
        wall, cpu_time = time.perf_counter(), time.process_time()
        result = function()
        elapsed = time.perf_counter() - wall
        if elapsed < best:
            best, busy = elapsed, time.process_time() - cpu_time
        if time.perf_counter() - begun > least:
            break
    return best, busy, result


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    import numba
    import scipy

    model = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    info = {
        "command": "python benchmarks/search.py " + " ".join(sys.argv[1:]),
        "processor": f"{model}, {os.cpu_count()} cores",
        "threads": arguments.threads,
        "versions": f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, "
        f"Numba {numba.__version__}",
        "load average at start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if arguments.device == "cuda":
        import cupy

        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        info["gpu"] = f"{name}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}, CuPy {cupy.__version__}"
    return info


def tables(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    print("\n| columns × rows | effort | efficacy | seconds | CPU s / 2 | target | met |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    records = []
    for columns, rows in SIZES:
        matrix = matrix_of(columns, rows)
        for effort in EFFORTS:
            options = {"effort": effort, "threads": arguments.threads}
            search(matrix[:16], device="cpu", effort="fast")
            seconds, busy, result = timed(lambda m=matrix, o=options: search(m, device="cpu", **o))
            value = references.efficacy(matrix, result.permutation)
            assert abs(value - result.efficacy) < 1e-6
            floor, limit = TARGETS[columns, rows][effort]
            met = value >= floor and seconds <= limit
            target = f"≥ {floor} in ≤ {limit} s"
            cells = (f"{columns} × {rows}", effort, f"{value:.2f}", f"{seconds:.3f}", f"{busy / 2:.3f}", target)
            print(f"| {' | '.join(cells)} | {'yes' if met else 'no'} |")
            record = {
                "columns": columns, "rows": rows, "effort": effort, "efficacy": value, "seconds": seconds,
                "cpu_seconds": busy, "met": met,
            }  # fmt: skip
            if arguments.device == "cuda":
                search(matrix, device="cuda", **options)
                seconds, _, other = timed(lambda m=matrix, o=options: search(m, device="cuda", **o))
                assert (other.permutation == result.permutation).all(), "the GPU found another order than the CPU"
                record["cuda_seconds"] = seconds
                faster = f"{record['seconds'] / seconds:.1f} times as fast"
                print(f"| | on the GPU | same order | {seconds:.4f} | | {faster} | |")
            records.append(record)
    if arguments.device == "cuda":
        records.append(large_on_gpu(arguments))
    return records


def large_on_gpu(arguments: argparse.Namespace) -> dict[str, Any]:
    matrix = matrix_of(8192, 8192).astype(np.float32)
    search(matrix[:, :512], device="cuda")
    on_gpu, _, result = timed(lambda: search(matrix, device="cuda"), least=0)
    on_cpu, _, other = timed(lambda: search(matrix, device="cpu", threads=arguments.threads), least=0)
    assert (other.permutation == result.permutation).all(), "the GPU found another order than the CPU"
    print(f"8192 × 8192 balanced: CPU {on_cpu:.1f} s, GPU {on_gpu:.2f} s, {on_cpu / on_gpu:.0f} times, the same order")
    return {"columns": 8192, "rows": 8192, "effort": "balanced", "seconds": on_cpu, "cuda_seconds": on_gpu}


def reference_table(which: str, ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    print(
        "\n| columns × rows | reference (NumPy) | efficacy | seconds | our least effort that beats it, times as fast |"
    )
    print("| --- | --- | --- | --- | --- |")
    runs: list[tuple[tuple[int, int], str, Callable[[np.ndarray], np.ndarray]]] = [
        ((64, 128), "best of 1000 random orders", lambda m: references.random_orders(m, 1000)),
        ((64, 128), "pairwise swaps, greedy", references.channel_swaps),
        ((64, 128), "stripe groups, 8 columns", lambda m: references.stripe_groups(m, 8)),
        ((256, 256), "best of 1000 random orders", lambda m: references.random_orders(m, 1000)),
        ((256, 256), "stripe groups, 8 columns", lambda m: references.stripe_groups(m, 8)),
    ]
    if which == "all":
        runs += [
            ((64, 128), "stripe groups, 12 columns", lambda m: references.stripe_groups(m, 12)),
            ((512, 512), "stripe groups, 8 columns", lambda m: references.stripe_groups(m, 8)),
        ]
    records = []
    for (columns, rows), name, function in runs:
        matrix = matrix_of(columns, rows)
        seconds, _, order = timed(lambda f=function, m=matrix: f(m), least=0)
        value = references.efficacy(matrix, order)
        mine = [r for r in ours if (r["columns"], r["rows"]) == (columns, rows) and r["efficacy"] > value]
        versus = f"{mine[0]['effort']}, {seconds / mine[0]['seconds']:.0f} times" if mine else "none"
        print(f"| {columns} × {rows} | {name} | {value:.2f} | {seconds:.2f} | {versus} |")
        records.append({"columns": columns, "rows": rows, "reference": name, "efficacy": value, "seconds": seconds})
    return records


KERNEL_RATE = """
import time
import numpy as np
from tfmot_asp.permutation.search import objective

size, rows = 256, 2048
random = np.random.default_rng(0)
codes, thresholds = (random.integers(0, 4096, (size, rows)).astype(np.uint16) for _ in range(2))
index, out = np.arange(size), np.zeros((size, size), np.int64)
a = random.random((768, 768), np.float32)
objective.excess_product(codes, thresholds, index, index, out)
product = gemm = 9.0
for _ in range(200):
    begun = time.perf_counter()
    objective.excess_product(codes, thresholds, index, index, out)
    product = min(product, time.perf_counter() - begun)
    begun = time.perf_counter()
    a @ a
    gemm = min(gemm, time.perf_counter() - begun)
print(size * size * rows / product / 1e9, 768**3 / gemm / 1e9)
"""


def kernel_rate() -> dict[str, Any]:
    """Multiply-adds per second of NumPy's float32 product, and of the (max, +) product, on one thread each.

    The least of 200 runs of some milliseconds, in turns: short enough to escape others' load on a busy machine, which
    with several threads would slow the matrix product's barriers and flatter us.
    """
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", KERNEL_RATE], env={**os.environ, **single}, capture_output=True, text=True, check=True
    )
    ours, gemm = (float(word) for word in done.stdout.split())
    print(
        f"\n(max, +) product {ours:.1f} G/s, float32 matrix product {gemm:.1f} G/s, a thread: ratio {ours / gemm:.2f}"
    )
    return {"max_plus_g_per_s": ours, "gemm_g_per_s": gemm, "ratio": ours / gemm, "threads": 1}


def first_call() -> dict[str, float]:
    """Seconds of a first call in a new process: with nothing cached, and with the machine code cached on disk."""
    code = (
        "import time, numpy as np; from tfmot_asp.permutation.search import search; m = np.random.rand(128, 64);"
        "t = time.perf_counter(); search(m, effort='fast', device='cpu'); print(time.perf_counter() - t)"
    )
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": folder}, capture_output=True,
                text=True, check=True,
            )  # fmt: skip
            seconds.append(float(done.stdout))
    print(f"\nFirst call in a process: {seconds[0]:.1f} s compiling, {seconds[1]:.2f} s from numba's cache")
    return {"compiling": seconds[0], "cached": seconds[1]}


def curve(threads: int) -> list[dict[str, Any]]:
    """Efficacy by time: the same annealing with more and more rounds."""
    print("\n| columns × rows | rounds | efficacy | seconds |")
    print("| --- | --- | --- | --- |")
    records = []
    for columns, rows in SIZES:
        matrix = matrix_of(columns, rows)
        scores = Scores(matrix)
        codes = encode(scores, survey(scores, 2)[0], 2)
        blocks = 2 if columns > 1024 else 1
        most = {64: 2**16, 256: 2**13, 512: 2**11, 2048: 2**10}[columns]
        rounds = 16
        while rounds <= most:
            work = Workload(
                1 if blocks > 1 else 2, rounds // 2 if blocks > 1 else 1, blocks, 2 if blocks > 1 else rounds
            )
            wall, _, (orders, _) = timed(
                lambda c=codes, p=work: cpu.search_codes(c, 4, 2, p, 0, threads, lambda fraction: False),
                least=0.2,
                most=5,
            )
            value = max(references.efficacy(matrix, order) for order in orders)
            print(f"| {columns} × {rows} | {rounds} | {value:.2f} | {wall:.4f} |")
            records.append({"columns": columns, "rows": rows, "rounds": rounds, "efficacy": value, "seconds": wall})
            rounds *= 2
    return records


def plot(points: list[dict[str, Any]], tabled: list[dict[str, Any]], others: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.5))
    for axis, (columns, rows) in zip(axes.flat, SIZES, strict=True):

        def of_size(records: list[dict[str, Any]], c: int = columns, r: int = rows) -> list[dict[str, Any]]:
            return [record for record in records if (record["columns"], record["rows"]) == (c, r)]

        mine = of_size(points)
        axis.plot(
            [p["seconds"] for p in mine],
            [p["efficacy"] for p in mine],
            "-",
            color="tab:green",
            label="annealed assignments",
        )
        for record in of_size(tabled):
            axis.plot(record["seconds"], record["efficacy"], "o", color="tab:green")
            axis.annotate(
                record["effort"], (record["seconds"], record["efficacy"]), textcoords="offset points", xytext=(4, -12)
            )
        for marker, record in zip("sv^Dx", of_size(others), strict=False):
            axis.plot(record["seconds"], record["efficacy"], marker, color="gray", label=record["reference"])
        axis.set_xscale("log")
        axis.set_title(f"{columns} columns × {rows} rows, uniform random")
        axis.set_xlabel("seconds on 2 CPU cores")
        axis.set_ylabel("efficacy, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def trained_matrices(paths: list[str]) -> list[tuple[str, np.ndarray]]:
    """Kernels of at least 32 input channels, as search matrices: of a perceptron trained here, and of ONNX files."""
    found = []
    with contextlib.suppress(ImportError):
        from sklearn.datasets import load_digits
        from sklearn.neural_network import MLPClassifier

        digits = load_digits()
        perceptron = MLPClassifier((256, 128), random_state=0, max_iter=60)
        perceptron.fit(digits.data / 16.0, digits.target)
        found += [(f"digits perceptron {k}", kernel.T) for k, kernel in enumerate(perceptron.coefs_)]
    for path in paths:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(path).graph
        weights = {item.name: item for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                for value in (a.t for a in node.attribute if a.name == "value"):
                    weights[node.output[0]] = value
        for node in graph.node:
            if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in weights:
                continue
            if any(a.name == "group" and a.i != 1 for a in node.attribute):
                continue
            weight = numpy_helper.to_array(weights[node.input[1]])
            if node.op_type == "Conv":
                weight = np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])
            elif weight.ndim == 2:
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                weight = weight if transposed else weight.T
            if weight.ndim == 2 and weight.shape[1] >= 32 and weight.shape[1] % 4 == 0:
                found.append((f"{Path(path).stem} {node.op_type}", np.ascontiguousarray(weight)))
    return found


def trained(paths: list[str], threads: int) -> list[dict[str, Any]]:
    efforts = ("fast", "balanced")
    print(
        "\n| trained kernel | columns × rows | "
        + " | ".join(f"{e}: efficacy, s" for e in efforts)
        + " | stripe pairs |"
    )
    print("| --- | --- | --- | --- | --- |")
    records = []
    for name, matrix in trained_matrices(paths):
        rows, columns = matrix.shape
        cells = []
        record: dict[str, Any] = {"kernel": name, "columns": columns, "rows": rows}
        for effort in efforts:
            seconds, _, result = timed(
                lambda m=matrix, e=effort: search(m, effort=e, device="cpu", threads=threads), least=0
            )
            record[effort] = references.efficacy(matrix, result.permutation)
            record[f"{effort}_seconds"] = seconds
            cells.append(f"{record[effort]:.2f}, {seconds:.2f}")
        greedy = references.efficacy(matrix, references.stripe_groups(matrix, 8)) if columns <= 96 else None
        record["stripe_pairs"] = greedy
        print(f"| {name} | {columns} × {rows} | {' | '.join(cells)} | {'' if greedy is None else f'{greedy:.2f}'} |")
        records.append(record)
    means = {effort: float(np.mean([record[effort] for record in records])) for effort in efforts}
    totals = {effort: sum(record[f"{effort}_seconds"] for record in records) for effort in efforts}
    print("| mean; total seconds | | " + " | ".join(f"{means[e]:.2f}, {totals[e]:.1f}" for e in efforts) + " | |")
    return records


def models(device: str, threads: int) -> list[dict[str, Any]]:
    """All groups of whole models at `balanced`, as `permute` searches them: on a GPU as many together as have room.

    Matrices are random (the time does not depend on them), of the sizes in model_sizes.json. Tracing and proof, which
    `permute` adds, are left out.
    """
    records = []
    for name, record in json.loads(MODEL_SIZES.read_text(encoding="utf-8")).items():
        shapes = {i: tuple(shape) for i, shape in enumerate(record["groups"])}
        random = np.random.default_rng(0)
        matrices = [random.standard_normal(shape, np.float32) for shape in shapes.values()]
        found, calls = {}, 0
        begun = time.perf_counter()
        for numbers in batches(shapes, device=device, effort="balanced"):
            results = search_many([matrices[i] for i in numbers], device=device, threads=threads)
            found.update(zip(numbers, results, strict=True))
            calls += 1
        seconds = time.perf_counter() - begun
        print(f"\n{name} on {device}: {len(shapes)} groups in {calls} calls, {seconds:.2f} s")
        if device == "cuda":
            check = [i for i, shape in shapes.items() if np.prod(shape) < 1 << 17][:4]
            for i, result in zip(check, search_many([matrices[i] for i in check], device="cpu"), strict=True):
                assert (result.permutation == found[i].permutation).all(), "the GPU found another order than the CPU"
        records.append({"model": name, "groups": len(shapes), "calls": calls, "device": device, "seconds": seconds})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--references", choices=("none", "quick", "all"), default="quick")
    parser.add_argument("--no-curve", action="store_true")
    parser.add_argument("--models", action="store_true")
    parser.add_argument("--trained", action="store_true", help="trained kernels: a perceptron on digits, and --onnx")
    parser.add_argument("--onnx", nargs="*", default=[])
    parser.add_argument("--out", type=Path, help="folder for search.json and search.png")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(arguments)}
    for key, value in results["environment"].items():
        print(f"{key}: {value}")
    results["first_call"] = first_call()
    results["kernel"] = kernel_rate()
    results["table"] = tables(arguments)
    results["references"] = (
        reference_table(arguments.references, results["table"]) if arguments.references != "none" else []
    )
    results["curve"] = [] if arguments.no_curve else curve(arguments.threads)
    if arguments.trained or arguments.onnx:
        results["trained"] = trained(arguments.onnx, arguments.threads)
    if arguments.models:
        results["models"] = [
            record
            for device in dict.fromkeys(("cpu", arguments.device))
            for record in models(device, arguments.threads)
        ]
    results["environment"]["load average at end"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(f"\nload average at end: {results['environment']['load average at end']}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "search.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if results["curve"]:
            plot(results["curve"], results["table"], results["references"], arguments.out / "search.png")


if __name__ == "__main__":
    main()
