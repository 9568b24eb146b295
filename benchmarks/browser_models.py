"""Trained models that npm packages carry for TensorFlow.js, as Keras models; see trained_models.py.

A package is unpacked into the folder of packages, under its name without the scope:

    npm pack nsfwjs@4.4.0 && mkdir -p PACKAGES/nsfwjs
    tar xzf nsfwjs-4.4.0.tgz -C PACKAGES/nsfwjs --strip-components 1

Its code is not run: only the weights and the description of the layers are read.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras
from trained_models import Case, Places, agreement, crops, predict


def photo_classes(places: Places, seed: int) -> Case:
    """nsfwjs' MobileNetV2 (batch norm, depthwise convolutions, relu6) on cut-outs of photos."""
    folder = places.packages / "nsfwjs/dist/models/mobilenet_v2"
    if not folder.exists():
        raise FileNotFoundError("npm pack nsfwjs@4.4.0, unpacked as browser_models.py says")
    shards = [
        max(re.findall(r'"([A-Za-z0-9+/=]*)"', p.read_text()), key=len) for p in sorted(folder.glob("group1*.js"))
    ]
    model = layers_model(exported((folder / "model.min.js").read_text()), b"".join(map(base64.b64decode, shards)))
    test = crops(places, 128, 224, 10_000, True)
    dense = predict(model, test)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test)
        logs = (np.log(x + 1e-7).ravel() for x in (outputs, dense))
        return {"agreement": agreement(outputs, dense), "correlation of logs": float(np.corrcoef(*logs)[0, 1])}

    return Case(
        "nsfwjs: MobileNetV2, batch norm, depthwise convolutions, photos",
        model,
        crops(places, 64, 224, seed, False),
        evaluate,
    )


def layers_model(description: dict[str, Any], data: bytes) -> tf_keras.Model:
    """A model of TensorFlow.js' layers format.

    Args:
        description: what its model.json holds.
        data: its weight files, one after the other.
    """
    topology = description["modelTopology"]
    model = tf_keras.models.model_from_json(json.dumps(topology.get("model_config", topology)))
    weights: dict[str, np.ndarray] = {}
    at = 0
    for entry in (entry for group in description["weightsManifest"] for entry in group["weights"]):
        rounded = entry.get("quantization")
        dtype = np.dtype(rounded["dtype"] if rounded else entry["dtype"])
        size = int(np.prod(entry["shape"]))
        value = np.frombuffer(data, dtype, size, at).reshape(entry["shape"])
        at += size * dtype.itemsize
        weights[entry["name"]] = value.astype(np.float32) * rounded["scale"] + rounded["min"] if rounded else value
    for variable in model.weights:
        variable.assign(weights.pop(variable.name.split(":")[0]))
    if weights:
        raise ValueError(f"weights of no layer: {', '.join(weights)}")
    return model


def exported(script: str) -> Any:
    """The object that a minified CommonJS module exports, where it is plain data."""
    start = script.index("exports={") + len("exports=")
    depth, end, quoted = 0, start, False
    while True:
        letter = script[end]
        if quoted:
            end += letter == "\\"
            quoted = letter != '"'
        else:
            quoted = letter == '"'
            depth += (letter in "{[") - (letter in "}]")
        end += 1
        if not depth and not quoted:
            break
    text = re.sub(r"([{,])([A-Za-z_$][\w$]*):", r'\1"\2":', script[start:end])
    text = text.replace("!0", "true").replace("!1", "false")
    return json.loads(re.sub(r"([:,\[\-])\.(\d)", r"\g<1>0.\2", text))


CASES: dict[str, Callable[[Places, int], Case]] = {"photo-classes": photo_classes}
