"""Runs a command, then again until a signal stops it at a random moment: a process of its own for `test_random_stops`.

    python -m tests.cli.stopped COMMAND SIGNAL SEED

In the folder it is started in. The first run, to other targets, tells how long the command takes.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

COMMANDS = {
    "permute": ["permute", "model.keras", "-o", "out.keras", "--force"],
    "prune": ["prune", "model.keras", "-o", "out.h5", "--force"],
    "saved_model": ["export", "pruned.keras", "--to", "saved_model", "-o", "out", "--force"],
    "onnx": ["export", "pruned.keras", "--to", "onnx", "-o", "out.onnx", "--force"],
}
TIMES = 6  # that SIGTERM stops it, in one process


def shards(target):
    """The model of `test_random_stops`, from its shards."""
    import keras

    import tfmot_asp

    def make():
        x = y = keras.Input((128,))
        for _ in range(6):
            y = keras.layers.Dense(128)(y)
        return keras.Model(x, y)

    tfmot_asp.permute_shards(make, "shards/m.weights.json", target, prune=True, effort="fast", progress=False)


def call(command, target, source=None):
    """Runs it, to a target and from another source if one is given; returns its exit code."""
    from tfmot_asp.cli import main

    if command == "shards":
        return shards(target)
    arguments = list(COMMANDS[command])
    arguments[1] = source or arguments[1]
    arguments[arguments.index("-o") + 1] = str(target)
    return main([*arguments, "--quiet"])


def stop(number):
    """Sends the signal; SIGTERM only while the command has its handler: before and after, it ends any process."""
    if number == signal.SIGKILL or signal.getsignal(number) != signal.SIG_DFL:
        os.kill(os.getpid(), number)


def main(command, number, seed):
    rng = random.Random(seed)
    target = "out" if command == "shards" else COMMANDS[command][COMMANDS[command].index("-o") + 1]
    Path("other").mkdir(exist_ok=True)
    for index in range(2):  # the first compiles
        start = time.perf_counter()
        assert call(command, f"other/{index}{Path(target).suffix}") in (0, None)
        seconds = time.perf_counter() - start
    codes = []
    for _ in range(TIMES if number == signal.SIGTERM else 1):
        timer = threading.Timer(rng.uniform(0, seconds), stop, (number,))
        timer.start()
        codes.append(call(command, target))
        timer.cancel()
        assert not [name for name in os.listdir() if "tfmot-asp-" in name], os.listdir()
    sys.stdout.write(f"CODES {json.dumps(codes)}\n")


if __name__ == "__main__":
    main(sys.argv[1], signal.Signals[sys.argv[2]], int(sys.argv[3]))
