"""`permute_shards` on weights that need not fit in memory: peak memory, time, kills at random moments, equality.

    python benchmarks/sharded.py --gigabytes 20 [--width 4096] [--kills 5] [--folder DIR] [--keep] [--out results]

Writes safetensors files of a chain of Dense layers in pairs, as in a transformer's blocks (width -> 4 width -> width,
with residual connections), random and a channel's size log-normal; permutes and prunes them in a process of its own,
which is killed (SIGKILL) at random moments and started again; then compares all files with those of an uninterrupted
run by SHA-256. With few gigabytes (`--in-memory`) also with `permute` and `prune_trained_model` on the model itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def build(blocks, width):
    import keras

    x = y = keras.Input((width,))
    y = keras.layers.Dense(width, use_bias=False, name="stem")(y)
    for i in range(blocks):
        z = keras.layers.Dense(4 * width, activation="relu", use_bias=False, name=f"up{i}")(y)
        y = keras.layers.Add()([y, keras.layers.Dense(width, use_bias=False, name=f"down{i}")(z)])
    return keras.Model(x, keras.layers.Dense(64, use_bias=False, name="head")(y))


def shapes(blocks, width):
    found = {"stem/kernel": (width, width)}
    for i in range(blocks):
        found[f"up{i}/kernel"], found[f"down{i}/kernel"] = (width, 4 * width), (4 * width, width)
    return {**found, "head/kernel": (width, 64)}


def write(folder, blocks, width):
    """One file for each block, written a row block at a time."""
    import numpy as np

    folder.mkdir(parents=True)
    every, mapping = shapes(blocks, width), {}
    names = [["stem/kernel", "head/kernel"], *([f"up{i}/kernel", f"down{i}/kernel"] for i in range(blocks))]
    for number, part in enumerate(names):
        header, at = {}, 0
        for name in part:
            size = 4 * every[name][0] * every[name][1]
            header[name] = {"dtype": "F32", "shape": every[name], "data_offsets": [at, at + size]}
            at, mapping[name] = at + size, f"{number:04d}.safetensors"
        text = json.dumps(header).encode()
        rng = np.random.default_rng(number)
        with open(folder / f"{number:04d}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in part:
                rows, columns = every[name]
                for start in range(0, rows, 1024):
                    block = rng.standard_normal((min(1024, rows - start), columns), np.float32)
                    block *= rng.lognormal(size=(len(block), 1)).astype(np.float32) / np.sqrt(rows, dtype=np.float32)
                    file.write(block.tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))


def run(arguments, target):
    import tfmot_asp

    started = time.perf_counter()
    report = tfmot_asp.permute_shards(
        lambda: build(arguments.blocks, arguments.width), arguments.folder / "weights" / "model.safetensors.index.json",
        target, prune=True, effort=arguments.effort, device="cpu", progress=False,
    )  # fmt: skip
    peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmHWM"))  # fmt: skip
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak, "permuted": report.permuted,
                      "prunable": report.prunable, "groups": len(report.groups)}))  # fmt: skip


def in_memory(arguments):
    import keras
    import numpy as np

    import tfmot_asp
    from tfmot_asp.permutation.shards.stores import open_store

    def arrays(folder):
        return {name: array[(slice(None),) * 2] for name, array in open_store(folder).arrays.items()}

    model = build(arguments.blocks, arguments.width)
    given, found = arrays(arguments.folder / "weights"), arrays(arguments.folder / "whole")
    for variable in model.weights:
        variable.assign(given[variable.path])
    options = {"effort": arguments.effort, "device": "cpu", "progress": False}
    tfmot_asp.prune_trained_model(model, permute=options)
    equal = all(np.array_equal(np.asarray(v), found[v.path]) for v in model.weights)
    print(json.dumps({"equal": equal, "keras": keras.__version__}))


def child(arguments, mode, timeout=None):
    """Runs this file in another process; None if it was killed when the time was up."""
    command = [sys.executable, __file__, "--mode", mode, "--blocks", str(arguments.blocks), "--width",
               str(arguments.width), "--effort", arguments.effort, "--folder", str(arguments.folder)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return None
    if process.returncode:
        sys.exit(errors[-3000:])
    return json.loads(out.splitlines()[-1])


def sums(folder):
    return (folder / "SHA256SUMS").read_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("sharded"))
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--blocks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("whole", "killed", "memory"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode == "memory":
        return in_memory(arguments)
    if arguments.mode:
        return run(arguments, arguments.folder / arguments.mode)
    import tfmot_asp

    arguments.blocks = arguments.blocks or max(1, round(arguments.gigabytes * 1e9 / (32 * arguments.width**2)))
    weights = sum(4 * a * b for a, b in shapes(arguments.blocks, arguments.width).values())
    lines = [
        f"command      python {' '.join(sys.argv)}", f"date         {datetime.date.today()}",
        f"machine      {platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        f"versions     Python {platform.python_version()}, tfmot_asp {tfmot_asp.__version__}", "",
        f"weights      {weights / 1e9:.1f} GB, {arguments.blocks} blocks of {arguments.width}, {arguments.effort}",
    ]  # fmt: skip

    def say(line):
        lines.append(line)
        print(line, flush=True)

    print("\n".join(lines), flush=True)
    needed, free = 2 * weights if not arguments.kills else 3 * weights, shutil.disk_usage(arguments.folder.parent).free
    if needed > free:
        sys.exit(f"needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
    started = time.perf_counter()
    if not (arguments.folder / "weights").exists():
        write(arguments.folder / "weights", arguments.blocks, arguments.width)
        say(f"written in   {time.perf_counter() - started:.0f} s")
    found = child(arguments, "whole")
    say(f"permuted and pruned in {found['seconds']:.0f} s, at most {found['peak'] / 1e9:.2f} GB resident, "
        f"{found['permuted']} of {found['prunable']} kernels in {found['groups']} groups")  # fmt: skip
    kills = 0
    while arguments.kills:
        limit = random.uniform(3, 0.7 * found["seconds"] + 8) if kills < arguments.kills else None
        again = child(arguments, "killed", limit)
        if again is not None:
            break
        kills += 1
    if arguments.kills:
        equal = sums(arguments.folder / "killed") == sums(arguments.folder / "whole")
        say(f"killed {kills} times at random moments and run again: files equal: {equal}")
    if arguments.in_memory:
        say(f"permute and prune_trained_model in memory: weights equal: {child(arguments, 'memory')['equal']}")
    if not arguments.keep:
        shutil.rmtree(arguments.folder)
    if arguments.out:
        (arguments.out / f"sharded_{arguments.gigabytes:g}GB.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
