"""Open axes that must be of one size share a name, which says what they are; others do not."""

import onnx
import pytest
import tf_keras
from tf_keras import layers

import tfmot_asp


def text(name, kind="int32"):
    return layers.Input((None,), dtype=kind, name=name)


def masked():
    ids, segments, mask = text("ids"), text("segments"), text("mask", "float32")
    x = layers.Embedding(9, 8)(ids) + layers.Embedding(9, 8)(segments)
    return tf_keras.Model([ids, segments, mask], layers.Dense(8)(x) * mask[..., None])


def encoder_and_decoder():
    ids, mask, answer, answer_mask = (
        text("ids"),
        text("mask", "float32"),
        text("answer"),
        text("answer_mask", "float32"),
    )
    x = layers.Embedding(9, 8)(ids) * mask[..., None]
    y = layers.Embedding(9, 8)(answer) * answer_mask[..., None]
    return tf_keras.Model([ids, mask, answer, answer_mask], layers.Dense(8)(layers.MultiHeadAttention(2, 4)(y, x)))


def images():
    x = layers.Input((None, None, 3), name="image")
    return tf_keras.Model(x, layers.Conv2D(8, 3, padding="same")(x))


MODELS = {
    masked: {"ids": ["batch", "sequence"], "segments": ["batch", "sequence"], "mask": ["batch", "sequence"]},
    encoder_and_decoder: {
        "ids": ["batch", "sequence"],
        "mask": ["batch", "sequence"],
        "answer": ["batch", "answer_sequence"],
        "answer_mask": ["batch", "answer_sequence"],
    },
    images: {"image": ["batch", "height", "width", 3]},
}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_axes_of_one_size_share_a_name(make, tmp_path):
    path = tmp_path / "m.onnx"
    report = tfmot_asp.export.onnx(make(), path, precision="fp32")
    graph = onnx.load(str(path)).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    named = MODELS[make]
    assert {name: shapes[name] for name in named} == named
    asked = sorted({str(name) for dims in named.values() for name in dims[1:] if isinstance(name, str)})
    if make is not images:  # what a convolution leaves of an open size has no name
        (output,) = set(shapes) - set(named)
        assert shapes[output] == ["batch", named[next(reversed(named))][1], 8]
    assert any(f"shapes={{'{named[next(iter(named))][1]}': (smallest" in note for note in report.notes)
    sizes = dict.fromkeys(asked, (16, 32, 64))
    command = tfmot_asp.export.trtexec_command(path, shapes=sizes)
    expected = {
        name: "x".join({"batch": "1"}.get(dim, "16") if isinstance(dim, str) else str(dim) for dim in dims)
        for name, dims in named.items()
    }
    assert "--minShapes=" + ",".join(f"{name}:{expected[name]}" for name in shapes if name in named) in command


def test_sizes_of_an_axis_are_three(tmp_path):
    tfmot_asp.export.onnx(images(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"shapes\['height'\] must be three integers"):
        tfmot_asp.export.trtexec_command(tmp_path / "m.onnx", shapes={"height": 3, "width": (1, 2, 3)})
    with pytest.raises(ValueError, match=r"give shapes=\{'width': \(smallest"):
        tfmot_asp.export.trtexec_command(tmp_path / "m.onnx", shapes={"height": (16, 32, 64)})
