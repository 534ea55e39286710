"""Optics: microscope, PSF models, synthesis of PSFs, blur, camera noise."""

from psf.blur import transfer_functions
from psf.errors import InputError
from psf.gibson_lanni import Layers
from psf.microscope import Microscope
from psf.model import LIGHTS, MODEL_NAMES, PsfModel, draw_labels, psf_model, turn_labels
from psf.synthesis import synthesize, synthesize_pupil, synthesize_with_loss

__all__ = [
    "LIGHTS",
    "MODEL_NAMES",
    "InputError",
    "Layers",
    "Microscope",
    "PsfModel",
    "draw_labels",
    "psf_model",
    "synthesize",
    "synthesize_pupil",
    "synthesize_with_loss",
    "transfer_functions",
    "turn_labels",
]
