"""A language model's prefill and step with a cache of keys and values: its files decode token by token as it does."""

import numpy as np
import pytest
import tensorflow as tf

import tfmot_asp
from tests.export.test_onnx import close, run, shaken

keras = pytest.importorskip("keras", minversion="3")

LENGTH, WIDTH, HEADS, LAYERS, WORDS = 8, 16, 2, 2, 20
CACHE = (None, LAYERS, 2, LENGTH, HEADS, WIDTH // HEADS)


@keras.saving.register_keras_serializable("decode")
class Decoder(keras.Model):
    """Two blocks of cached attention, as keras_hub writes them."""

    def __init__(self):
        super().__init__(name="decoder")
        dense = keras.layers.Dense
        self.words = keras.layers.Embedding(WORDS, WIDTH)
        self.places = self.add_weight(shape=(LENGTH, WIDTH), initializer="normal", name="places")
        self.queries = [dense(WIDTH, name=f"queries_{i}") for i in range(LAYERS)]
        self.keys_and_values = [dense(2 * WIDTH, name=f"keys_and_values_{i}") for i in range(LAYERS)]
        self.mixers = [dense(WIDTH, name=f"mixer_{i}") for i in range(LAYERS)]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6)
        self.head = dense(WORDS, name="head")

    def call(self, token_ids, cache, index):
        ops = keras.ops
        count = token_ids.shape[1]
        x = self.words(token_ids) + ops.slice(self.places, [index, 0], [count, WIDTH])
        seen = ops.arange(LENGTH) <= ops.reshape(index + ops.arange(count), (count, 1))
        caches = []
        for i in range(LAYERS):
            new = ops.reshape(self.keys_and_values[i](x), (-1, count, 2, HEADS, WIDTH // HEADS))
            new = ops.transpose(new, (0, 2, 1, 3, 4))
            known = ops.slice_update(cache[:, i, ...], [0, 0, index, 0, 0], new)
            caches.append(known)
            q = ops.reshape(self.queries[i](x), (-1, count, HEADS, WIDTH // HEADS))
            scores = ops.einsum("bqhd,bkhd->bhqk", q, known[:, 0])
            weights = ops.softmax(ops.where(seen, scores, -1e9))
            mixed = ops.einsum("bhqk,bkhd->bqhd", weights, known[:, 1])
            x = self.norm(x + self.mixers[i](ops.reshape(mixed, (-1, count, WIDTH))))
        return {"logits": self.head(x), "cache": ops.stack(caches, axis=1)}


def shapes(count):
    return {"token_ids": ((None, count), "int32"), "cache": CACHE, "index": tf.TensorSpec((), "int32")}


@pytest.fixture(scope="module")
def decoder():
    model = Decoder()
    model(np.zeros((1, 1), "int32"), np.zeros((1, *CACHE[1:]), "f"), index=tf.constant(0))
    tfmot_asp.prune_trained_model(shaken(model), permute=False).remove()
    return model


def decoded(prefill, step, tokens):
    """The logits behind each token but the prompt's first two, one step for each."""
    first = prefill(token_ids=tokens[:, :3], cache=np.zeros((len(tokens), *CACHE[1:]), "f"), index=np.array(0, "int32"))
    logits, cache = [first["logits"][:, 2]], first["cache"]
    for i in range(3, LENGTH):
        found = step(token_ids=tokens[:, i : i + 1], cache=cache, index=np.array(i, "int32"))
        cache = found["cache"]
        logits.append(found["logits"][:, 0])
    return np.stack([np.asarray(part) for part in logits], 1)


TOKENS = np.random.default_rng(0).integers(0, WORDS, (2, LENGTH)).astype("int32")


def test_onnx_files_decode_as_the_model_does(decoder, tmp_path):
    pytest.importorskip("tf2onnx")
    paths = {count: tmp_path / f"{count}.onnx" for count in (3, 1)}
    for count, path in paths.items():
        report = tfmot_asp.export.onnx(decoder, path, precision="fp32", input_shapes=shapes(count))
        assert report.sparse == 3 * LAYERS

    def runner(path):
        return lambda **inputs: {name.removesuffix("_output"): value for name, value in run(path, **inputs).items()}

    expected = decoded(decoder, decoder, TOKENS)
    close(decoded(runner(paths[3]), runner(paths[1]), TOKENS), expected)
    whole = decoder(TOKENS, np.zeros((2, *CACHE[1:]), "f"), index=tf.constant(0))["logits"][:, 2:]
    close(expected, whole)


def test_tflite_files_slice_caches_of_six_axes(decoder, tmp_path):
    generator = np.random.default_rng(1)
    data = [
        {
            "token_ids": generator.integers(0, WORDS, (1, 1)).astype("int32"),
            "cache": generator.normal(size=(1, *CACHE[1:])).astype("f"),
            "index": np.array(i, "int32"),
        }
        for i in range(LENGTH)
    ]
    report = tfmot_asp.export.tflite(decoder, tmp_path / "m.tflite", input_shapes=shapes(1))
    assert report.sparse == 3 * LAYERS
    runner = tf.lite.Interpreter(model_path=str(tmp_path / "m.tflite")).get_signature_runner()
    for batch in data:
        found = runner(**batch)
        for name, value in decoder(**batch).items():
            close(found[name], value)


def test_a_cache_in_parts_has_names_for_each(tmp_path):
    pytest.importorskip("tf2onnx")

    class Parts(keras.Model):
        def call(self, x, cache, index):
            new = [{k: keras.ops.slice_update(v, [0, index], x) for k, v in part.items()} for part in cache]
            return {"y": x + new[0]["key"][:, :2], "cache": new}

    model = Parts()
    given = {"x": np.ones((3, 2), "f"), "index": np.array(1, "int32")}
    parts = [{name: np.zeros((3, 4), "f") for name in ("key", "value")} for _ in range(2)]
    expected = model(given["x"], parts, index=tf.constant(1))
    shape = {"x": (None, 2), "cache": [{"key": (None, 4), "value": (None, 4)}] * 2, "index": ((), np.int32)}
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32", input_shapes=shape)
    inputs = {f"cache_{i}_{name}": value for i, part in enumerate(parts) for name, value in part.items()}
    found = run(tmp_path / "m.onnx", **given, **inputs)
    assert set(found) == {"y", *(f"{name}_output" for name in inputs)}
    close(found["cache_1_key_output"], expected["cache"][1]["key"])
    close(found["y"], expected["y"])


def test_the_command_has_the_shapes_of_the_step(decoder, tmp_path):
    pytest.importorskip("tf2onnx")
    tfmot_asp.export.onnx(decoder, tmp_path / "m.onnx", input_shapes=shapes(1))
    command = tfmot_asp.export.trtexec_command(tmp_path / "m.onnx")
    assert "--minShapes=token_ids:1x1,cache:1x2x2x8x2x8,index:scalar" in command
