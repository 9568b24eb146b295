"""`permute_shards` on weights that need not fit in memory: peak memory, kills at random moments, equality, rates.

    python benchmarks/sharded.py --gigabytes 20 [--width 4096] [--kill-after 300 900] [--folder DIR] [--out results]

Writes safetensors files of a chain of Dense layers in pairs, as in a transformer's blocks (width -> 4 width -> width,
with residual connections), random and a channel's size log-normal; permutes and prunes them in a process of its own,
which is killed (SIGKILL) and started again; then compares the files with their SHA-256 as `sha256sum` finds it, and
with what the source's weights and the orders of the report give in memory. Few gigabytes may also be compared with a
run that nothing interrupts (`--uninterrupted`), and with `prune_trained_model` on the model itself (`--in-memory`).
Needs Linux, and twice the weights of disk, thrice with `--uninterrupted`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import signal
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
    print(json.dumps({"seconds": time.perf_counter() - started, "permuted": report.permuted,
                      "prunable": report.prunable, "groups": len(report.groups)}))  # fmt: skip


def arrays(folder):
    from tfmot_asp.permutation.shards.stores import open_store

    return {name: array[(slice(None),) * 2] for name, array in open_store(folder).arrays.items()}


def check(arguments):
    """Makes each file of the target anew from that of the source and the orders in the report, in memory."""
    import numpy as np

    import tfmot_asp
    from tfmot_asp import masks

    source, target = arguments.folder / "weights", arguments.folder / "target"
    report = tfmot_asp.PermutationReport.load(target / "permutation.json")
    stream = next(np.asarray(group.order) for group in report.groups if "head" in group.layers)
    inner = {layer: np.asarray(group.order) for group in report.groups for layer in group.layers}
    sparse = total = 0
    for path in sorted(source.glob("*.safetensors")):
        old, new = arrays(path), arrays(target / path.name)
        for name, value in old.items():
            layer = name.partition("/")[0]
            if layer != "stem":
                value = value[inner[layer] if layer.startswith("down") else stream]
            if layer != "head":
                value = value[:, inner[f"down{layer[2:]}"] if layer.startswith("up") else stream]
            expected = masks.apply_mask(value, masks.m_by_n_mask(masks.magnitude(value), (0,)))
            if not np.array_equal(expected, new[name]) or masks.violations(new[name], (0,)):
                sys.exit(f"{name} is not as it should be")
            sparse, total = sparse + np.count_nonzero(new[name] == 0), total + new[name].size
    print(json.dumps({"zeros": sparse / total}))


def in_memory(arguments):
    import keras
    import numpy as np

    import tfmot_asp

    model = build(arguments.blocks, arguments.width)
    given, found = arrays(arguments.folder / "weights"), arrays(arguments.folder / "target")
    for variable in model.weights:
        variable.assign(given[variable.path])
    options = {"effort": arguments.effort, "device": "cpu", "progress": False}
    tfmot_asp.prune_trained_model(model, permute=options)
    equal = all(np.array_equal(np.asarray(v), found[v.path]) for v in model.weights)
    print(json.dumps({"equal": equal, "keras": keras.__version__}))


class Child:
    """This file in another process, watched.

    Attributes:
        found: what it printed; None if it was killed when its time was up.
        peak: of resident memory, its own and that of its children added up, in bytes.
        seconds, processor: how long it took, and how much time of processors.
        seen: the lines of the target's journal, each with the processor's time when it came.
    """

    def __init__(self, arguments, mode, limit=None):
        command = [sys.executable, __file__, "--mode", mode, "--blocks", str(arguments.blocks), "--width",
                   str(arguments.width), "--effort", arguments.effort, "--folder", str(arguments.folder)]  # fmt: skip
        journal = arguments.folder / mode / "tfmot_asp.jsonl"
        started, peaks, self.seen, self.processor = time.perf_counter(), {}, [], 0.0
        known = len(lines_of(journal))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while True:
                try:
                    out, errors = process.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    for pid, (peak, spent) in family(process.pid).items():
                        peaks[pid] = max(peaks.get(pid, 0), peak)
                        self.processor = max(self.processor, spent)
                    self.seen += [(self.processor, line) for line in lines_of(journal)[known + len(self.seen) :]]
                    if limit is not None and time.perf_counter() - started > limit:
                        process.kill()
        if process.returncode not in (0, -signal.SIGKILL):
            sys.exit(errors[-3000:])
        self.seen += [(self.processor, line) for line in lines_of(journal)[known + len(self.seen) :]]
        self.found = None if process.returncode else json.loads(out.splitlines()[-1])
        self.peak, self.seconds = sum(peaks.values()), time.perf_counter() - started


def lines_of(journal):
    """The lines of a journal that are whole."""
    found = journal.read_text().splitlines() if journal.exists() else ()
    return [json.loads(line) for line in found if line.endswith("}")]


def family(pid):
    """The peak of resident memory, in bytes, and the time of processors of a process and of all below it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return {}
    peak = sum(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    found = {pid: (peak, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))}
    for one in children:
        found.update(family(int(one)))
    return found


def rates(arguments, runs, sizes):
    """Work per second of a processor: elements of the groups of the blocks and of that of the residual stream, bytes
    of files. What a kill has lost is not counted, nor are the starts of runs."""
    width, work, spent = arguments.width, {}, {}
    residual = sum(a * b for name, (a, b) in shapes(arguments.blocks, width).items() if name[:2] in ("up", "he"))
    for run in runs:
        done = None
        for at, line in run.seen:
            if "group" in line:
                inner = len(line["permutation"]) > width
                kind, size = ("inner", 4 * width**2) if inner else ("residual", residual)
            else:
                kind, size = "writing", sizes.get(line.get("file"), 0)
            if done is not None:
                work[kind], spent[kind] = work.get(kind, 0) + size, spent.get(kind, 0) + at - done
            done = at
    return {kind: work[kind] / spent[kind] for kind in work}


def arithmetic(found, workers=16, blocks=80, width=8192, inner=28672, vocabulary=128256):
    """What the rates say of a model of 70 billion weights in bfloat16, on so many workers of one processor."""
    attention = width * (2 * width + 2 * width // 8)
    stream = blocks * (width * (width + 2 * width // 8) + 2 * width * inner) + vocabulary * width
    weights = blocks * (attention + 3 * width * inner) + 2 * vocabulary * width
    rounds = -(-blocks // (workers - 1))
    residual, groups = stream / found["residual"], rounds * inner * width / found["inner"]
    written = 2 * weights / workers / found["writing"]
    return [
        f"{weights / 1e9:.0f} billion weights: {blocks} blocks of {width} with gated MLPs of {inner}, bfloat16, on "
        f"{workers} workers of one processor by these rates",
        f"  residual stream  {stream / 1e9:.0f} billion elements on one of them: {residual / 60:.0f} minutes",
        f"  MLPs, meanwhile  {blocks} groups of {inner * width / 1e6:.0f} million on the other {workers - 1}, {rounds} "
        f"each: {groups / 60:.0f} minutes",
        f"  writing          {2 * weights / workers / 1e9:.1f} GB each: {written / 60:.0f} minutes",
        f"  in all           {(max(residual, groups) + written) / 60:.0f} minutes",
    ]


def hashed(folder):
    """The hashes of a target's files by name, of which each is as its SHA256SUMS says."""
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    return (folder / "SHA256SUMS").read_text()


def machine():
    """Processor, cores and memory."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.platform()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--kill-after", type=float, nargs="*", metavar="SECONDS", help="by default at random, twice")
    parser.add_argument("--folder", type=Path, default=Path("sharded"))
    parser.add_argument("--uninterrupted", action="store_true")
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--blocks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("target", "uninterrupted", "check", "memory"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode in ("check", "memory"):
        return check(arguments) if arguments.mode == "check" else in_memory(arguments)
    if arguments.mode:
        return run(arguments, arguments.folder / arguments.mode)
    import keras
    import tensorflow as tf

    import tfmot_asp

    arguments.blocks = arguments.blocks or max(1, round(arguments.gigabytes * 1e9 / (32 * arguments.width**2)))
    weights = sum(4 * a * b for a, b in shapes(arguments.blocks, arguments.width).values())
    lines = [
        f"command      python {' '.join(sys.argv)}", f"date         {datetime.date.today()}",
        f"machine      {machine()}",
        f"versions     Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"tfmot_asp {tfmot_asp.__version__}", "",
        f"weights      {weights / 1e9:.1f} GB, {arguments.blocks} blocks of {arguments.width}, {arguments.effort}",
    ]  # fmt: skip

    def say(line):
        lines.append(line)
        print(line, flush=True)

    print("\n".join(lines), flush=True)
    if not (arguments.folder / "weights").exists():
        needed, free = (2 + arguments.uninterrupted) * weights, shutil.disk_usage(arguments.folder.parent).free
        if needed > free:
            sys.exit(f"needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
        started = time.perf_counter()
        write(arguments.folder / "weights", arguments.blocks, arguments.width)
        say(f"written in   {time.perf_counter() - started:.0f} s")
    sizes = {path.name: path.stat().st_size for path in (arguments.folder / "weights").iterdir()}
    kills = arguments.kill_after
    if kills is None:
        kills = [random.uniform(10, 20 + 30 * weights / 1e9) for _ in range(2)]
    runs = []
    for limit in [*kills, None]:
        runs.append(Child(arguments, "target", limit))
        if runs[-1].found is not None:
            break
        say(f"killed       after {limit:.0f} s: {sum('group' in line for _, line in runs[-1].seen)} groups and "
            f"{sum('file' in line for _, line in runs[-1].seen)} files were new, {runs[-1].peak / 1e9:.2f} GB resident "
            "at most")  # fmt: skip
    found, last, spent = runs[-1].found, runs[-1], sum(one.processor for one in runs)
    say(f"finished     after {last.seconds:.0f} s more ({spent:.0f} s of processors in all): "
        f"{last.peak / 1e9:.2f} GB resident at most")  # fmt: skip
    say(f"permuted     {found['permuted']} of {found['prunable']} kernels in {found['groups']} groups")
    hashes = hashed(arguments.folder / "target")
    zeros = Child(arguments, "check").found["zeros"]
    say(f"verified     {len(hashes.splitlines())} files by sha256sum; all weights equal to those made from the source "
        f"and the report's orders in memory; 2:4, {zeros:.1%} zeros")  # fmt: skip
    if arguments.uninterrupted:
        Child(arguments, "uninterrupted")
        say(f"files equal to those of an uninterrupted run: {hashed(arguments.folder / 'uninterrupted') == hashes}")
    if arguments.in_memory:
        equal = Child(arguments, "memory").found["equal"]
        say(f"weights equal to those of prune_trained_model in memory: {equal}")
    speed = rates(arguments, runs, sizes)
    names = {"inner": "elements in the groups of the MLPs", "residual": "elements in that of the residual stream",
             "writing": "bytes written"}  # fmt: skip
    for kind, rate in speed.items():
        say(f"rate         {rate / 1e6:.1f} million {names[kind]} per second of a processor")
    if len(speed) == len(names):  # each was seen, by a run that began here
        for line in ["", *arithmetic(speed)]:
            say(line)
    if not arguments.keep:
        shutil.rmtree(arguments.folder)
    if arguments.out:
        (arguments.out / f"sharded_{arguments.gigabytes:g}GB.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
