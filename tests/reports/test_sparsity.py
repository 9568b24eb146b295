import json
import logging

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests import naive_masks
from tests.small_models import convnet, mlp
from tfmot_asp import masks


@pytest.fixture
def half_pruned():
    """The convnet with `conv` and `fc` pruned, and one violation planted in `fc`."""
    model = convnet(classes=10)
    policy = tfmot_asp.PruneForSparseTensorCores(skip=[model.get_layer("stem")])
    model = tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(model, pruning_policy=policy, permute=False))
    kernel = model.get_layer("fc").kernel.numpy()
    kernel[4:8, 5] = 1.0
    model.get_layer("fc").kernel.assign(kernel)
    return model


def test_rows_say_what_holds_and_what_does_not(half_pruned):
    report = tfmot_asp.sparsity_report(half_pruned)
    rows = {row.name: row for row in report.layers}
    assert list(rows) == ["stem", "conv", "fc", "head"]
    assert (rows["conv"].violations, rows["conv"].holds, rows["conv"].zeros) == (0, True, 0.5)
    assert rows["conv"].retained == pytest.approx(1.0)
    assert (rows["fc"].violations, rows["fc"].holds, rows["fc"].stripes) == (1, False, 256 // 4 * 32)
    assert rows["stem"].reason == "Conv2D 'stem' has 3 input channels; sparse Tensor Cores need a multiple of 16"
    assert rows["stem"].violations == naive_masks.violations(half_pruned.get_layer("stem").kernel.numpy(), 2, (2, 4))
    head = half_pruned.get_layer("head").kernel.numpy()
    kept = np.abs(head)[naive_masks.mask(np.abs(head), 0, (2, 4))].sum()
    assert rows["head"].retained == pytest.approx(kept / np.abs(head).sum(), rel=1e-6)
    assert "10 output features" in rows["head"].reason
    assert (report.prunable, report.sparse) == (2, 1)


def test_the_table_is_aligned_and_the_dict_is_json(half_pruned):
    report = tfmot_asp.sparsity_report(half_pruned)
    lines = report.to_text(None).splitlines()
    assert lines[0] == "convnet: 1 of 2 prunable kernels are 2:4 along their reduction axis (4 kernels in all)"
    lines = lines[lines.index("") + 1 :]
    column = lines[0].index("2:4")
    assert [line[column:].split("  ")[0] for line in lines[1:5]] == [
        "no, 144 of 144",
        "yes",
        "no, 1 of 2,048",
        "no, 80 of 80",
    ]
    again = json.loads(json.dumps(report.to_dict()))
    assert again["layers"][1]["name"] == "conv"
    assert again["layers"][1]["holds"] is True
    assert again["layers"][0]["shape"] == [3, 3, 3, 16]
    assert again["sparse"] == 1


def test_wrapped_models_depthwise_kernels_and_other_patterns():
    x = layers.Input((8, 8, 16))
    model = tf_keras.Model(x, layers.SeparableConv2D(16, 3, name="sep")(layers.Conv2D(16, 1, name="c")(x)))
    pruned = tfmot_asp.prune_low_magnitude(model, sparsity_m_by_n=(3, 4), permute=False)
    assert [row.holds for row in tfmot_asp.sparsity_report(pruned, sparsity_m_by_n=(3, 4)).layers] == [False] * 3
    plain = tfmot_asp.strip_pruning(pruned)
    report = tfmot_asp.sparsity_report(plain, sparsity_m_by_n=(3, 4))
    assert [(row.attribute, row.holds) for row in report.layers] == [
        ("kernel", True),
        ("depthwise_kernel", False),
        ("pointwise_kernel", True),
    ]
    assert report.layers[1].violations is None
    assert "sep.depthwise_kernel" in str(report)
    assert "1:4 (3 zeros in every 4)" in str(report)


def test_any_policy_and_keras_3():
    class Nothing:
        def allow_pruning(self, layer):
            return False

    assert [row.reason for row in tfmot_asp.sparsity_report(mlp(), policy=Nothing()).layers] == [
        "Dense 'first' is kept dense: the policy does not allow it",
        "Dense 'second' is kept dense: the policy does not allow it",
    ]
    keras3 = pytest.importorskip("keras", minversion="3")
    model = keras3.Sequential([keras3.layers.Input((16,)), keras3.layers.Dense(8, name="d")])
    (row,) = tfmot_asp.sparsity_report(model).layers
    assert (row.name, row.reason, row.shape) == ("d", None, (16, 8))


def test_a_kernel_of_zeros_retains_nothing_to_speak_of():
    model = mlp()
    model.get_layer("first").kernel.assign(tf.zeros((16, 32)))
    row = tfmot_asp.sparsity_report(model).layers[0]
    assert (row.holds, row.zeros, row.retained) == (True, 1.0, None)


@pytest.mark.parametrize(
    ("thing", "match"),
    [
        ("model", "takes a Keras model or layer, got a str"),
        (tf_keras.Sequential([layers.Dense(3)], name="later"), "'later' is not built"),
    ],
)
def test_what_is_no_built_model_is_refused(thing, match):
    with pytest.raises(ValueError, match=match):
        tfmot_asp.sparsity_report(thing)


def test_check_pruned_layers_counts_and_logs_like_tf_asp(half_pruned, caplog):
    assert tfmot_asp.check_pruned_layers(half_pruned) == (2, 4)  # by share of zeros: one violation is not seen
    assert caplog.messages == ["[TF-ASP] 2/4 layers (Conv2D or Dense) are pruned!"]
    assert caplog.records[0].levelno == logging.WARNING
    caplog.clear()
    assert tfmot_asp.check_pruned_layers(half_pruned, show_all=True, check_structured=True) == (2, 4)
    assert caplog.messages[1] == (
        "[TF-ASP] layer=conv, type=Conv2D, shape=(3, 3, 16, 16): zero_ratio=0.500000 Structured=True"
    )
    assert caplog.messages[2].endswith("Structured=False")
    assert len(caplog.messages) == 5


@pytest.mark.parametrize("inputs", [1, 2, 3, 125, 126, 127])
def test_check_pruned_layers_knows_what_an_incomplete_stripe_can_give(inputs):
    model = mlp(inputs)
    kernel = model.get_layer("first").kernel.numpy()
    model.get_layer("first").kernel.assign(masks.apply_mask(kernel, masks.m_by_n_mask(np.abs(kernel), 0)))
    assert tfmot_asp.check_pruned_layers(model) == (int(inputs > 2), 2)


def test_reasons_are_written_out_whole_and_so_are_names():
    x = layers.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, name="a_stem_with_a_name_that_takes_most_of_a_line_and_is_needed_for_skip")(x)
    model = tf_keras.Model(x, layers.DepthwiseConv2D(3, name="a_depthwise_layer_with_a_long_name")(y))
    text = str(tfmot_asp.sparsity_report(model, batch_size=None))
    assert "a_stem_with_a_name_that_takes_most_of_a_line_and_is_needed_for_skip" in text
    assert "a_depthwise_layer_with_a_long_name.depthwise_kernel" in text
    assert max(map(len, text.splitlines())) <= 120
    reason = "has a depthwise kernel, which sums over no channels, so it is no matrix product that Tensor Cores could"
    assert reason in " ".join(text.split())
