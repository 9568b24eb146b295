"""Writes the sizes that whole models ask for: search matrices of their groups, and products of their kernels.

    python benchmarks/model_sizes.py           # writes benchmarks/model_sizes.json

So that a machine with a GPU measures whole models without TensorFlow: `search.py --models` and `products.py` read the
file. Times depend on these sizes, not on the weights.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

SIZES = Path(__file__).with_name("model_sizes.json")
BATCHES = {"ResNet50": (1, 32, 256), "VGG16": (1, 32), "BERT": (1, 32, 256)}


def groups_of(model: Any) -> list[tuple[int, int]]:
    """(rows, columns) of the search matrix of each group."""
    from tfmot_asp.permutation.matrix import GroupMatrix
    from tfmot_asp.permutation.plan import plan_model

    plan = plan_model(model)
    return [GroupMatrix(group, plan.plan.kernels, plan.score).shape for group in plan.plan.groups if group.parts]


def products_of(model: Any, batch: int) -> list[dict[str, Any]]:
    """M, N and K of each kernel's products, how often they are called, and the precisions that have a 2:4 kernel."""
    from tfmot_asp.graph import kernel_work
    from tfmot_asp.hardware.cost_model import PRECISIONS
    from tfmot_asp.hardware.product_times import why_no_sparse_kernel
    from tfmot_asp.keras_models.kernels import layers_with_kernels

    kernels = [kernel for layer in layers_with_kernels(model) for kernel in layer.kernels]
    found = []
    for kernel, sizes in zip(kernels, kernel_work.measure(model, kernels, batch).gemms, strict=True):
        takes = [precision for precision in PRECISIONS if why_no_sparse_kernel(kernel, precision) is None]
        for size in sizes:
            found.append({"size": [size.m * size.groups, size.n, size.k], "calls": size.calls, "sparse_in": takes})
    return found


def main() -> None:
    import tf_keras
    from estimates import bert

    records = {}
    for name, batches in BATCHES.items():
        model = bert() if name == "BERT" else getattr(tf_keras.applications, name)(weights=None)
        products = {str(batch): products_of(model, batch) for batch in batches}
        records[name] = {"groups": groups_of(model), "products": products}
        print(f"{name}: {len(records[name]['groups'])} groups, {len(products['1'])} products")
    lines = [f" {json.dumps(name)}: {json.dumps(record)}" for name, record in records.items()]
    SIZES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
