"""Measure the throughput of the model that `main.py` exported, in TensorFlow or in TensorRT through TF-TRT.

    python examples/tftrt/tftrt_infer.py --use_native_tensorflow
    python examples/tftrt/tftrt_infer.py --use_tftrt_model
    TF_TRT_SPARSE_MODE=0 python examples/tftrt/tftrt_infer.py --use_tftrt_model

The second needs TensorFlow 2.17 or older with TensorRT, and a GPU of the Ampere generation or later; the third is the
same without sparse kernels, for comparison. TF-TRT logs `[TF-TRT] Sparse compute capability is enabled.` or `disabled.`
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # TF-TRT's line about sparsity is at level INFO: set 0 to see it

import tensorflow as tf

import tfmot_asp
from tfmot_asp.export.tftrt import example_inputs


def throughput(saved_model_dir: pathlib.Path, batch_size: int, image_size: int, warmup: int, steps: int) -> float:
    """Samples per second of a SavedModel's signature, by the median of its steps."""
    loaded = tf.saved_model.load(str(saved_model_dir))
    signature = loaded.signatures["serving_default"]
    (inputs,) = example_inputs(signature, (batch_size, image_size, image_size, 1))
    seconds = []
    for step in range(warmup + steps):
        started = time.perf_counter()
        for output in signature(**inputs).values():
            output.numpy()  # waits for the GPU
        if step >= warmup:
            seconds.append(time.perf_counter() - started)
    return batch_size / statistics.median(seconds)


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--use_native_tensorflow", action="store_true", help="run the SavedModel as it is")
    way.add_argument("--use_tftrt_model", action="store_true", help="convert it with TF-TRT first")
    parser.add_argument("--input_saved_model_dir", type=pathlib.Path, default=pathlib.Path("exported_model"))
    parser.add_argument("--output_saved_model_dir", type=pathlib.Path, help="keep the converted model here")
    parser.add_argument("--precision", default="fp16", choices=["fp32", "fp16"])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=32, help="as it was for main.py")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the measurement")
    parser.add_argument("--steps", type=int, default=50, help="steps that are measured")
    args = parser.parse_args(argv)
    model_dir = args.input_saved_model_dir
    if not (model_dir / "saved_model.pb").exists():
        parser.error(f"there is no SavedModel at {model_dir}: run examples/tftrt/main.py first")

    with tempfile.TemporaryDirectory() as scratch:
        if args.use_tftrt_model:
            converted = args.output_saved_model_dir or pathlib.Path(scratch) / "converted"
            shape = (args.batch_size, args.image_size, args.image_size, 1)
            try:
                tfmot_asp.export.tftrt(model_dir, converted, args.precision, input_shapes=shape, overwrite=True)
            except RuntimeError as error:  # no TensorRT, or no GPU
                raise SystemExit(f"TF-TRT cannot run here: {error}") from error
            model_dir = converted
        result = throughput(model_dir, args.batch_size, args.image_size, args.warmup, args.steps)
    what = f"TF-TRT {args.precision}" if args.use_tftrt_model else "native TensorFlow"
    mode = f", TF_TRT_SPARSE_MODE={os.environ.get('TF_TRT_SPARSE_MODE', 'unset')}" if args.use_tftrt_model else ""
    print(f"{what}{mode}, batch {args.batch_size}: average throughput {result:.0f} samples/s")
    return result


if __name__ == "__main__":
    main()
