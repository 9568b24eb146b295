"""Models that a file describes, without their weights."""

import json
import zipfile

import keras as keras3
import pytest
import tf_keras

from tests.small_models import mlp
from tfmot_asp.loading import UnsafeModelError
from tfmot_asp.loading.architecture import load_architecture


@pytest.mark.parametrize("keras", [tf_keras, keras3], ids=["tf_keras", "keras3"])
@pytest.mark.parametrize("name", ["model.keras", "model.json"])
def test_both_files_describe_the_model(keras, name, tmp_path):
    x = keras.Input((16,))
    model = keras.Model(x, keras.layers.Dense(8, name="fc")(x), name="described")
    if name == "model.json":
        (tmp_path / name).write_text(model.to_json())
    else:
        model.save(tmp_path / name)
    found = load_architecture(tmp_path / name)
    assert type(found).__module__.split(".")[0] == type(model).__module__.split(".")[0]
    assert json.loads(found.to_json())["config"] == json.loads(model.to_json())["config"]


def test_an_archive_is_not_unpacked_before_its_size_is_checked(tmp_path, monkeypatch):
    mlp().save(tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (200 << 20))
        archive.writestr("metadata.json", json.dumps({"keras_version": "2"}))

    def unpacked(*_, **__):
        raise AssertionError("unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpacked)
    with pytest.raises(UnsafeModelError, match=r"do not explain config\.json"):
        load_architecture(tmp_path / "bomb.keras")
    with pytest.raises(AssertionError, match="unpacked"):  # as one of its own size is
        load_architecture(tmp_path / "small.keras")
