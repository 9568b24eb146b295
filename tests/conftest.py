"""Settings that all tests share."""

import gc
import os
import signal
import sys

import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.pop("COLUMNS", None)  # which pytest-xdist sets: what is printed here goes to no terminal

# A shell starts background jobs with this ignored, and tests that interrupt what they started would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow example on a loaded machine is no defect.
settings.register_profile("tfmot_asp", deadline=None)
settings.load_profile("tfmot_asp")


@pytest.fixture(autouse=True)
def _names_start_anew():
    """Layers without a name are numbered by process: no test may depend on those that ran before it."""
    if keras := sys.modules.get("tf_keras"):
        keras.backend.reset_uids()
    if naming := sys.modules.get("keras.src.utils.naming"):  # no public function does this alone
        naming.reset_uids()


@pytest.fixture(autouse=True)
def _keras_defaults_stay():
    """Fails the test that leaves a floatx or a policy behind, in place of a later one in the same process."""
    yield
    if keras := sys.modules.get("tf_keras"):
        assert keras.backend.floatx() == "float32", "floatx was left changed: use tests.dtypes.floatx"
        keras.backend.set_floatx("float64")  # a policy that was set stays, and the default follows
        try:
            assert keras.mixed_precision.global_policy().name == "float64", "use tests.dtypes.policy"
        finally:
            keras.backend.set_floatx("float32")
            keras.mixed_precision.set_global_policy(None)


@pytest.fixture(autouse=True, scope="module")
def _what_tensorflow_keeps_is_set_aside():
    """TensorFlow keeps graphs with a custom gradient for ever: no later search for garbage or models walks them."""
    yield
    gc.collect()
    gc.freeze()
