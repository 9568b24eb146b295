"""permute_shards: from files to files, as `permute` and one-shot pruning do it in memory, to the bit."""

import json
import struct
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tfmot_asp.keras_models.without_weights import without_weights
from tfmot_asp.permutation.shards import permute_shards as module
from tfmot_asp.permutation.shards.checkpoint import crc32c
from tfmot_asp.permutation.shards.file_array import FileArray
from tfmot_asp.permutation.shards.stores import open_store

OPTIONS = {"effort": "fast", "device": "cpu", "progress": False}


def build(library):
    layers = library.layers
    x = layers.Input((8, 8, 32))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 3, padding="same")(x)))
    y = layers.Add()([y, layers.Conv2D(64, 3, padding="same")(y)])
    y = layers.Flatten()(layers.MaxPooling2D(4)(y))
    y = layers.Dense(256, activation="relu")(y)
    z = layers.Reshape((4, 64))(y)
    y = layers.Flatten()(layers.MultiHeadAttention(4, 16)(z, z))
    return library.Model(x, layers.Dense(16)(layers.Dense(64, activation="relu")(y)))


def filled(library):
    model = build(library)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.standard_gamma(0.5, variable.shape).astype("float32") + np.float32(0.01))
    return model


def safetensors(folder, arrays):
    """Two files and their index, as Hugging Face's library writes them."""
    names, mapping = list(arrays), {}
    for number, part in enumerate((names[::2], names[1::2])):
        header, data = {"__metadata__": {"format": "tf"}}, b""
        for name in part:
            raw = arrays[name].tobytes()
            header[name] = {
                "dtype": "F32",
                "shape": arrays[name].shape,
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        text = json.dumps(header).encode()
        (folder / f"{number}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        mapping |= dict.fromkeys(part, f"{number}.safetensors")
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))


def save(model, kind, folder):
    folder.mkdir()
    if kind == "sharded":
        model.save_weights(folder / "m.weights.json", max_shard_size=0.0011)
        return folder / "m.weights.json"
    if kind == "hdf5":
        model.save_weights(folder / "m.weights.h5")
        return folder / "m.weights.h5"
    if kind == "safetensors":
        safetensors(folder, {v.path: np.asarray(v) for v in model.weights})
        return folder / "m.safetensors.index.json"
    if kind == "checkpoint":
        tf.train.Checkpoint(model=model).write(str(folder / "m"))
    else:
        model.save_weights(folder / "m")
    return folder / "m"


def load(model, kind, path):
    if kind in ("sharded", "hdf5"):
        model.load_weights(path)
    elif kind == "safetensors":
        arrays = open_store(path).arrays
        for v in model.weights:
            v.assign(arrays[v.path][tuple(slice(None) for _ in v.shape)])
    elif kind == "checkpoint":
        tf.train.Checkpoint(model=model).read(str(path)).assert_existing_objects_matched()
    else:
        model.load_weights(path).assert_existing_objects_matched()


def snapshot(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "tfmot_asp.jsonl"}


@pytest.mark.parametrize(
    ("library", "kind"),
    [(keras, "sharded"), (keras, "hdf5"), (keras, "safetensors"), (keras, "checkpoint"), (tf_keras, "tf_keras")],
)
def test_as_in_memory(library, kind, tmp_path):
    model = filled(library)
    source = save(model, kind, tmp_path / "source")
    before = snapshot(source.parent)
    names = iter([variable.path for variable in model.weights]) if kind == "safetensors" else None
    options = dict(OPTIONS)
    if names is not None:  # Keras numbers the layers of another build
        tensors = {}

        def build_named():
            made = build(library)
            tensors.update(zip([v.path for v in made.weights], names, strict=True))
            return made

        options["names"] = lambda variable: tensors.get(variable.path, "")
    else:
        build_named = lambda: build(library)  # noqa: E731
    report = tfmot_asp.permute_shards(build_named, source, tmp_path / "target", prune=True, **options)
    found = build(library)
    if kind == "safetensors":
        arrays = open_store(tmp_path / "target" / source.name).arrays
        values = [arrays[v.path][tuple(slice(None) for _ in v.shape)] for v in model.weights]
    else:
        load(found, kind, tmp_path / "target" / source.name)
        values = found.get_weights()
    pruned = tfmot_asp.prune_trained_model(model, permute=OPTIONS)
    for expected, got in zip(model.get_weights(), values, strict=True):
        np.testing.assert_array_equal(expected, got)
    assert [group.order for group in report.groups] == [group.order for group in pruned.permutation.groups]
    assert report.permuted == pruned.permutation.permuted >= 5
    assert snapshot(source.parent) == before
    assert set(snapshot(tmp_path / "target")) == {*before, "permutation.json", "SHA256SUMS"} - {"checkpoint"}


def test_stopped_anywhere_it_goes_on(tmp_path, monkeypatch):
    source = save(filled(keras), "sharded", tmp_path / "source")
    make = lambda: build(keras)  # noqa: E731
    tfmot_asp.permute_shards(make, source, tmp_path / "whole", prune=True, **OPTIONS)
    expected, target = snapshot(tmp_path / "whole"), tmp_path / "target"
    add, searched = module.Journal._add, []

    def stopping(self, line):
        add(self, line)
        searched.append(line.get("group", line.get("file")))
        with open(self.path, "a") as file:
            file.write('{"group": 1, "perm')  # what a kill leaves of the next
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Journal, "_add", stopping)
        for _ in range(30):
            try:
                tfmot_asp.permute_shards(make, source, target, prune=True, **OPTIONS)
                break
            except KeyboardInterrupt:
                continue
    assert len(searched) == len(set(searched)) > 5  # nothing twice
    found = snapshot(target)
    assert set(found) == set(expected)
    for name in found:
        if name != "permutation.json":  # has the times and names of layers
            assert found[name] == expected[name]
    (target / "m_00000.weights.h5").write_bytes(b"damaged")
    with ThreadPoolExecutor(2) as pool:
        tfmot_asp.permute_shards(make, source, target, prune=True, executor=pool, **OPTIONS)
    assert snapshot(target)["m_00000.weights.h5"] == expected["m_00000.weights.h5"]
    with pytest.raises(FileExistsError, match="beginning of another run, with another options"):
        tfmot_asp.permute_shards(make, source, target, **OPTIONS)


def test_a_report_is_applied_shard_by_shard(tmp_path):
    model = filled(keras)
    source = save(model, "sharded", tmp_path / "source")
    report = tfmot_asp.permute(model, **OPTIONS)
    again = tfmot_asp.permute_shards(lambda: build(keras), source, tmp_path / "target", report=report, **OPTIONS)
    assert [group.order for group in again.groups] == [group.order for group in report.groups]
    found = build(keras)
    found.load_weights(tmp_path / "target" / source.name)
    for expected, got in zip(model.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, got)


def test_refusals(tmp_path):
    model = filled(keras)
    source = save(model, "hdf5", tmp_path / "source")

    def run(make=lambda: build(keras), source=source, target=tmp_path / "target", **options):
        tfmot_asp.permute_shards(make, source, target, **OPTIONS, **options)

    with pytest.raises(TypeError, match="make_model must be a function"):
        run(model)
    with pytest.raises(FileNotFoundError, match="is no store of weights"):
        run(source=tmp_path / "source" / "absent")
    with pytest.raises(ValueError, match="is the folder of the weights themselves"):
        run(target=tmp_path / "source")
    with pytest.raises(ValueError, match=r"has no tensor 'x', of shape .*names="):
        run(names=lambda variable: "x")
    with pytest.raises(ValueError, match=r"in the files, and .* in the model"):
        run(lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(64), keras.layers.Dense(64)]),
            names=lambda variable: sorted(open_store(source).arrays)[0])  # fmt: skip
    (tmp_path / "target" / "m.weights.h5").touch()
    with pytest.raises(FileExistsError, match="already: give an empty folder"):
        run()
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="its header is longer than it"):
        open_store(tmp_path / "bad.safetensors")


def test_variables_without_weights_take_no_memory():
    for library in (keras, tf_keras):
        with without_weights():
            model = library.Sequential([library.Input((1 << 17,)), library.layers.Dense(1 << 17, use_bias=False)])
        assert tuple(model.weights[0].shape) == (1 << 17, 1 << 17)  # 64 GiB


def test_windows_of_files(tmp_path):
    path, rng = tmp_path / "array", np.random.default_rng(0)
    values = rng.normal(size=(6, 7, 8)).astype(np.float32)
    path.write_bytes(b"head" + values.tobytes())
    array = FileArray(str(path), 4, values.shape, "float32")
    for window in [
        (slice(1, 4), slice(2, 3), slice(0, 8)),
        (slice(None),) * 3,
        (slice(5, 6), slice(0, 7), slice(3, 5)),
    ]:
        np.testing.assert_array_equal(array[window], values[window])
        moves = [(0, rng.permutation(6)), (2, rng.permutation(8))]
        expected = values.take(moves[0][1], 0).take(moves[1][1], 2)[window]
        np.testing.assert_array_equal(array.reordered(moves, window), expected)
    array[slice(2, 3), slice(0, 7), slice(1, 2)] = np.zeros((1, 7, 1), np.float32)
    values[2:3, :, 1:2] = 0
    np.testing.assert_array_equal(array[(slice(None),) * 3], values)


def test_crc32c():
    assert crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283
    assert crc32c(np.frombuffer(b"56789", np.uint8), crc32c(np.frombuffer(b"1234", np.uint8))) == 0xE3069283
