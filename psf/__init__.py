"""Optics: microscope, PSF models, blur, noise, source images."""

from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import MODEL_NAMES, PsfModel, draw_labels, psf_model, turn_labels
from psf.synthesis import synthesize, synthesize_with_loss

__all__ = [
    "MODEL_NAMES",
    "InputError",
    "Microscope",
    "PsfModel",
    "draw_labels",
    "psf_model",
    "synthesize",
    "synthesize_with_loss",
    "turn_labels",
]
