"""Run as a script: parses an ONNX file and builds an engine with TensorRT for RTX, and writes down what became of it.

Takes its task as JSON, and imports nothing of this package, so that it starts fast and may crash. What is known is
written after each stage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    import tensorrt_rtx as trt

    task = json.loads(sys.argv[1])
    found: dict[str, Any] = {"version": trt.__version__, "parsed": False, "built": False, "refused": []}

    def save(**known: Any) -> None:
        found.update(known)
        Path(task["answer"]).write_text(json.dumps(found))

    errors: list[str] = []

    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)

    save()
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(task["onnx"]):
        save(refused=list(dict.fromkeys(described(parser.get_error(i)) for i in range(parser.num_errors))))
        return
    save(parsed=True)
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, task["gpu"]), 0)
    if task["profiles"]:
        profile = builder.create_optimization_profile()
        for name, three in task["profiles"].items():
            profile.set_shape(name, *map(tuple, three))
        config.add_optimization_profile(profile)
    errors.clear()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        save(refused=list(dict.fromkeys(errors)) or ["the builder gave no engine and no reason"])
    else:
        save(built=True)


def described(error: Any) -> str:
    """A line of the parser's error, with the node it is about."""
    node = error.node_name() or "a node without a name"
    return f"{node} ({error.node_operator()}): {' '.join(error.desc().split())}"


if __name__ == "__main__":
    main()
