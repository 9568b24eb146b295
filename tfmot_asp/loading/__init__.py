"""Load models from files that may be damaged, foreign or malicious: ``load_model(path)``.

A model file is a program in disguise: Keras files name Python functions to import and hold pickled code (Lambda
layers), SavedModels hold graphs whose ops can read and write files or call into Python, and TensorFlow runs some of
those ops while it loads. What a file says is therefore checked against lists of what is known to be harmless before
anything of it is built. Importing this package loads no TensorFlow.
"""

from tfmot_asp.loading.keras_config import UnsafeModelError
from tfmot_asp.loading.model import load_model
from tfmot_asp.loading.saved_model_check import check_saved_model

__all__ = ["UnsafeModelError", "check_saved_model", "load_model"]
