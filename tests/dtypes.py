"""Keras' defaults for dtypes, changed for the length of a block: what is left behind changes every later test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tf_keras


@contextlib.contextmanager
def floatx(dtype: str) -> Iterator[None]:
    """Layers and inputs are made in `dtype`."""
    tf_keras.backend.set_floatx(dtype)
    try:
        yield
    finally:
        tf_keras.backend.set_floatx("float32")


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """Layers are made with this policy; then again with that of floatx, which "float32" would not be."""
    tf_keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(None)
