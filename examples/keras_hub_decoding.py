"""A keras_hub language model to two ONNX files, prefill and step, which decode in onnxruntime as ``generate`` does.

    python examples/keras_hub_decoding.py [--tokens 8] [--out DIR]

keras_hub keeps the keys and values of seen tokens in a cache, through ``call_with_cache``. The same function is
exported twice: for a whole prompt, and for one token. What is around it, tokenizer, sampler and loop, stays Python. The
model is a tiny Gemma with random weights, so nothing is downloaded; with ``GemmaCausalLM.from_preset`` in its place the
rest stays as it is. Needs ``pip install ".[onnx]" keras-hub``.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # before Keras is imported

import keras
import numpy as np
import onnxruntime

import tfmot_asp

try:
    import keras_hub
except ImportError as error:
    print(f"skipped: this example needs keras_hub ({error}): pip install keras-hub")
    sys.exit(0)

LENGTH = 24  # of prompt and answer together: the size of the cache


class Decoding(keras.Model):
    """What generate calls over and over: tokens from position ``index`` on, with the cache of those before."""

    def __init__(self, causal_lm: keras.Model) -> None:
        super().__init__(name="decoding")
        self.causal_lm = causal_lm

    def call(self, token_ids, cache, index):
        logits, _, cache = self.causal_lm.call_with_cache(token_ids, cache, index)
        return {"logits": logits, "cache": cache}


def build_model() -> keras.Model:
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=200,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        hidden_dim=64,
        intermediate_dim=256,
    )
    model = keras_hub.models.GemmaCausalLM(backbone)
    for weight in model.weights:  # so that answers differ: new models repeat one token
        weight.assign_add(keras.random.normal(weight.shape, stddev=0.1, seed=len(weight.path)))
    return model


def decode(folder: pathlib.Path, prompt: np.ndarray, cache: np.ndarray, count: int) -> np.ndarray:
    """``count`` tokens behind each prompt, the likeliest each time, by the two files."""
    prefill, step = (onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("prefill", "step"))
    inputs = {"token_ids": prompt, "cache": cache, "index": np.array(0, np.int32)}
    tokens = [prompt]
    for place in range(prompt.shape[1], prompt.shape[1] + count):
        runner = step if len(tokens) > 1 else prefill
        logits, cache = runner.run(["logits", "cache_output"], inputs)
        tokens.append(logits[:, -1:].argmax(-1).astype(np.int32))
        inputs = {"token_ids": tokens[-1], "cache": cache, "index": np.array(place, np.int32)}
    return np.concatenate(tokens, axis=1)


def main(argv: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8, help="to decode")
    parser.add_argument("--out", type=pathlib.Path, help="folder to write to (default: a temporary one)")
    args = parser.parse_args(argv)
    out = args.out or pathlib.Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    causal_lm = build_model()
    tfmot_asp.prune_trained_model(causal_lm).remove()

    backbone = causal_lm.backbone
    prompt = np.random.default_rng(0).integers(1, 200, (2, 6)).astype(np.int32)
    sizes = (backbone.num_layers, 2, LENGTH, backbone.num_key_value_heads, backbone.head_dim)
    cache = np.zeros((len(prompt), *sizes), np.float32)
    decoding = Decoding(causal_lm)
    decoding(prompt, cache, index=keras.ops.convert_to_tensor(0))  # builds it
    for name, count in (("prefill", prompt.shape[1]), ("step", 1)):
        shapes = {"token_ids": ((None, count), "int32"), "cache": (None, *sizes), "index": ((), "int32")}
        report = tfmot_asp.export.onnx(
            decoding, out / f"{name}.onnx", precision="fp32", input_shapes=shapes, overwrite=True
        )
        print(f"{name}.onnx: {report.sparse} of {len(report.layers)} weights are {report.sparsity_m_by_n}")

    found = decode(out, prompt, cache, args.tokens)
    causal_lm.compile(sampler="greedy")
    length = prompt.shape[1] + args.tokens
    padded = np.pad(prompt, ((0, 0), (0, length - prompt.shape[1])))
    mask = np.arange(length)[None] < prompt.shape[1]
    batch = {"token_ids": padded, "padding_mask": np.repeat(mask, len(prompt), axis=0)}
    expected = causal_lm.generate(batch, stop_token_ids=None)["token_ids"]
    print(f"prompt and answer, decoded in onnxruntime:\n{found}\nby generate:\n{np.asarray(expected)}")
    if not np.array_equal(found, expected):
        raise SystemExit("the files decode other tokens than the model")
    return found


if __name__ == "__main__":
    main()
