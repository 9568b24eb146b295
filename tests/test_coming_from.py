"""The pages for those who come from elsewhere: what they say to write runs, and gives a 2:4 model."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
import tf_keras

import tfmot_asp

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)


def run(block):
    """Runs a block on a small model and data, and returns the model that it leaves."""
    tf_keras.utils.set_random_seed(0)
    layers = [tf_keras.layers.Dense(64, "relu"), tf_keras.layers.Dense(32, "relu")]
    head = tf_keras.layers.Dense(8, "softmax")
    rng = np.random.default_rng(0)
    namespace = {
        "tf_keras": tf_keras,
        "model": tf_keras.Sequential([tf_keras.Input((32,)), *layers, head]),
        "images": rng.normal(size=(64, 32)).astype("float32"),
        "labels": rng.integers(0, 8, 64),
        "optimizer": tf_keras.optimizers.Adam(1e-3),
    }
    exec(compile(block, "page", "exec"), namespace)
    return namespace["model"]


@pytest.mark.parametrize("page", ["from_tfmot", "from_tf_asp", "from_apex", "from_model_optimizer"])
def test_what_to_write_gives_a_sparse_model(page):
    report = tfmot_asp.sparsity_report(run(blocks(page)[-1]))
    assert [layer.two_four for layer in report.layers] == [True] * 3


def test_what_was_written_before_runs_with_tfmot():
    before, after = blocks("from_tfmot")
    run(before)
    assert "tfmot.sparsity.keras.prune_low_magnitude" not in after


def test_only_the_import_changes_for_scripts_of_tf_asp():
    before, after = blocks("from_tf_asp")
    assert before.replace("import tf_asp", "import tfmot_asp as tf_asp") == after
