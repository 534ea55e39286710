"""Networks that estimate PSF parameters from image patches; training, checkpoints and maps."""

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
