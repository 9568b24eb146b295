"""Settings that all tests share."""

import os
import signal

from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# A shell starts background jobs with this ignored, and tests that interrupt what they started would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow example on a loaded machine is no defect.
settings.register_profile("tfmot_asp", deadline=None)
settings.load_profile("tfmot_asp")
