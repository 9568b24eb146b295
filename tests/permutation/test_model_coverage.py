"""The models of `tf_keras.applications`: all prunable kernels permuted, the logits unchanged, every op with a rule."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from benchmarks import model_coverage as coverage
from tests import dtypes
from tfmot_asp.permutation import rules
from tfmot_asp.permutation.plan import plan_model
from tfmot_asp.permutation.report import finish

SMALL = {
    "ConvNeXtTiny": 40,
    "DenseNet121": 120,
    "EfficientNetB0": 38,
    "EfficientNetV2B0": 60,
    "InceptionV3": 94,
    "MobileNet": 14,
    "MobileNetV2": 33,
    "MobileNetV3Small": 29,
    "RegNetX002": 16,
    "RegNetY002": 16,
    "ResNet50": 53,
    "ResNet50V2": 53,
}


@pytest.fixture(autouse=True)
def _cleared():
    yield
    tf_keras.backend.clear_session()


@pytest.mark.parametrize("name", SMALL)
def test_small_models(name):
    """At 80 pixels, so that a dozen models take little time; the graph is the same."""
    # The deeper EfficientNets amplify rounding with random scales: double precision tells that from an error.
    dtype = "float64" if name.startswith("EfficientNet") else "float32"
    options = {"include_preprocessing": False} if name.startswith("ConvNeXt") else {}
    with dtypes.floatx(dtype):
        body = getattr(tf_keras.applications, name)(
            weights=None, include_top=False, pooling="avg", input_shape=(80, 80, 3), **options
        )
        model = tf_keras.Model(body.input, tf_keras.layers.Dense(16)(body.output))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.shape.rank <= 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    plan = plan_model(model)
    image = tf.constant(rng.random((1, 80, 80, 3)), dtype)
    before = model(image).numpy()
    report = finish(plan, model, [coverage.random_order(g.size, rng) for g in plan.plan.groups], verify=False)
    assert np.abs(before - model(image).numpy()).max() <= 1e-5 * np.abs(before).max()
    assert [e.reason for e in report.layers if e.status in ("fixed", "partly permuted")] == []
    assert report.permuted == report.prunable >= SMALL[name] - 1
    assert {op.type for op in plan.graph.ops} - rules.op_types() == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", coverage.model_names())
def test_all_models(name):
    row = coverage.measure(name)
    if row["change"] > coverage.LIMIT:
        row = coverage.measure(name, "float64")
    assert row["change"] <= coverage.LIMIT
    assert row["permuted"] == row["prunable"]
    assert row["without_rule"] == []
