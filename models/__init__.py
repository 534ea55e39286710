"""Networks that read PSF parameters off a patch, their data, training and checkpoints."""

from models.checkpoint import Estimator, OpticsWarning, Prediction, load_estimator
from models.networks import MODEL_NAMES, build

__all__ = [
    "MODEL_NAMES",
    "Estimator",
    "OpticsWarning",
    "Prediction",
    "build",
    "load_estimator",
]
