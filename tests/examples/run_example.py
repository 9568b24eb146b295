"""Runs the scripts of examples/ as a user would: loaded by path, since they are no package."""

import importlib.util
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def load_example(name):
    """The module of an example, such as ``"quickstart.py"`` or ``"tftrt/main.py"``; its ``main`` has not run."""
    path = EXAMPLES / name
    module_name = "example_" + path.relative_to(EXAMPLES).with_suffix("").as_posix().replace("/", "_")
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    # Registered while it lives: pickling, dataclasses and Keras' serialization look a class's module up by name.
    sys.modules[module_name] = module
    sys.path.insert(0, str(EXAMPLES))  # as Python does for a script: they share digits.py
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


def run_example(name, argv=()):
    """Calls an example's ``main`` in this process and gives what it returns."""
    return load_example(name).main([str(argument) for argument in argv])


def run_example_process(name, argv=(), timeout=600, **environment):
    """Runs an example in a Python of its own, as from the command line, and gives what it printed.

    Args:
        environment: variables to set in it; None removes one that this process has.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), **{key: value for key, value in environment.items() if value}}
    for key in [key for key, value in environment.items() if value is None]:
        env.pop(key, None)
    command = [sys.executable, str(EXAMPLES / name), *map(str, argv)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
