"""Networks that estimate PSF parameters from image patches; training, checkpoints and maps."""

from models.checkpoint import load_estimator
from models.estimator import Estimator, OpticsWarning, Prediction
from models.networks import MODEL_NAMES, build

__all__ = [
    "MODEL_NAMES",
    "Estimator",
    "OpticsWarning",
    "Prediction",
    "build",
    "load_estimator",
]
