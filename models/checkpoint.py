"""Checkpoints: folders with model.safetensors, config.json and a model card, and their use.

config.json describes how to rebuild and apply the network: architecture, patch size, names, units
and ranges of the labels, and the optics of the training.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from common.files import naming_damage, read_json, whole_file, write_json
from models import error_bars
from models.context import ContextNet
from models.estimator import Estimator
from models.loss import Scaler, output_count
from models.model_card import model_card
from models.networks import build
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES
from psf.model import from_config

# Entries of config.json without which a network cannot be applied.
REQUIRED = ("architecture", "psf_model", "label_names", "label_unit", "label_ranges")
REQUIRED += ("patch_size", "optics_limits")
CONTEXT_FILE = "context.safetensors"  # weights of the network that sees whole images
LARGEST_PATCH_PX = 4096  # more than any network can take at once; a larger number is damage
SHIPPED = Path(__file__).parents[1] / "checkpoints"  # the weights that come with the project
AUTO = "auto"  # the value of --checkpoint that stands for the advised network
# Advised for widefield images: it saw real kinds of objects and the widest range of optics, and
# sees images as a whole.
ADVISED = "focus"


def save_context(folder: Path, context: nn.Module) -> None:
    """Write the weights of a context network beside those of its encoder."""
    weights = {name: tensor.contiguous().cpu() for name, tensor in context.state_dict().items()}
    with whole_file(folder / CONTEXT_FILE) as partial:
        partial.write_bytes(save(weights))


def save_checkpoint(folder: Path, network: nn.Module, config: Mapping[str, Any]) -> None:
    """Write weights, config and model card, each whole or not at all."""
    weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with whole_file(folder / "model.safetensors") as partial:
        partial.write_bytes(save(weights))  # unlike save_file, this raises OSError on a full disk
    write_json(folder / "config.json", config)
    with whole_file(folder / "README.md") as partial:
        partial.write_text(model_card(config), encoding="utf-8")


def load_estimator(path: str | Path, device: str | torch.device = "cpu") -> Estimator:
    """Estimator of a checkpoint, ready to predict.

    Parameters
    ----------
    path : folder, e.g. "runs/zernike1d", a name in `shipped_names`, e.g. "zernike1d", or "auto",
        which is the advised network
    device : on which the network runs

    Raises
    ------
    InputError
        If the folder is missing, its files are truncated, or they do not belong together.
    """
    path = ADVISED if str(path) == AUTO else path
    folder, device = Path(path), torch.device(device)
    if not folder.is_dir() and str(path) in shipped_names():
        folder = SHIPPED / path
    if not folder.is_dir():
        names = ", ".join(shipped_names()) or "none"
        raise InputError(
            f"there is no checkpoint folder {folder}; give a folder of train.py, or a shipped "
            f"name: {names}."
        )
    inside = sorted(path.parent.name for path in folder.glob("*/model.safetensors"))
    if inside and not (folder / "config.json").exists():
        raise InputError(f"{folder} holds several checkpoints; give one: {', '.join(inside)}.")
    config = read_json(folder / "config.json", "checkpoint")
    weights_path = folder / "model.safetensors"
    if config.get("kind") != "checkpoint" or not weights_path.is_file():
        raise InputError(f"{folder} is no checkpoint; train one with train.py.")
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise InputError(f"{folder / 'config.json'} lacks {', '.join(missing)}; train again.")
    with naming_damage(folder / "config.json", "configuration of a checkpoint"):
        _check_config(config)
        network = build(config["architecture"], output_count(len(config["label_names"])))
    load_weights(weights_path, network)
    context = None
    if "context" in config:
        context = ContextNet(output_count(len(config["label_names"])))
        load_weights(folder / CONTEXT_FILE, context)
        context.to(device).eval()
    name = folder.resolve().name
    return Estimator(network.to(device).eval(), config, device, name, context)


def load_weights(path: Path, network: nn.Module) -> None:
    """Load the weights of a network from a safetensors file.

    Raises
    ------
    InputError
        If the file is missing, truncated, of another network, or holds NaN.
    """
    try:
        weights = load_file(path)
        network.load_state_dict(weights)
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is truncated or of another network: {reason}") from error
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise InputError(f"{path} is damaged: it holds NaN or infinite weights.")


def _check_config(config: Mapping[str, Any]) -> None:
    """Build all that prediction takes from a configuration; a damaged one raises an error."""
    names = config["label_names"]
    model = from_config(config["psf_model"])
    if list(names) != list(model.label_names) or len(config["label_ranges"]) != len(names):
        raise ValueError(f"labels {names} do not fit the PSF model")
    if not isinstance(config["label_unit"], str):
        raise TypeError(f"label_unit is {config['label_unit']}")
    scaler = Scaler.from_ranges(config["label_ranges"])
    if not (torch.isfinite(scaler.middle).all() and (scaler.half_range > 0).all()):
        raise ValueError(f"label_ranges are {config['label_ranges']}")
    size = config["patch_size"]
    if not isinstance(size, int) or not 0 < size <= LARGEST_PATCH_PX:
        raise ValueError(f"patch_size is {size}")
    limits = config["optics_limits"]
    if missing := {*OPTICS_NAMES, "cutoff_cycles_per_pixel"} - limits.keys():
        raise ValueError(f"optics_limits lack {', '.join(sorted(missing))}")
    for name, (low, high) in limits.items():
        if not 0 < low <= high < math.inf:
            raise ValueError(f"optics_limits of {name} are {low}, {high}")
    ones = torch.ones(1, len(names))
    for calibrated in (config, config.get("context", config)):
        if not torch.isfinite(error_bars.interval_factors(calibrated, ones, torch.ones(1))).all():
            raise ValueError("the calibration of the error bars holds no finite numbers")


def shipped_names() -> tuple[str, ...]:
    """Names of the checkpoints that come with the project."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/model.safetensors")))
