"""Settings that all tests share."""

import os

from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# A slow example on a loaded machine is no defect.
settings.register_profile("tfmot_asp", deadline=None)
settings.load_profile("tfmot_asp")
