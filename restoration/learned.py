"""Learned restorations on disk: folders with weights, config.json and a model card."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from common.files import naming_damage, read_json, whole_file, write_json
from psf.errors import InputError
from restoration.iteration import Restored, Settings
from restoration.step_network import StepNetwork
from restoration.unrolled import CHANNELS, STEPS, Design, Problem, restore_unrolled
from restoration.variant_blur import VariantBlur

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "restoration"
# another name than that of the networks that estimate PSFs, which are listed by it
WEIGHTS = "restoration.safetensors"
KIND = "restoration"  # in config.json, apart from the networks that estimate PSFs
REQUIRED = ("design", "steps", "start_steps", "channels")


@dataclass(frozen=True)
class Prior:
    """A trained step network, and how it is used."""

    network: StepNetwork
    config: Mapping[str, Any]

    @property
    def design(self) -> Design:
        """On what the network works, see `restoration.unrolled`."""
        return self.config["design"]

    def restore(self, photons: torch.Tensor, blur: VariantBlur, settings: Settings) -> Restored:
        """Restoration of photons (H, W)."""
        device = next(self.network.parameters()).device
        network = self.network if device == photons.device else deepcopy(self.network)
        problem = Problem(photons, blur, settings)
        return restore_unrolled(problem, network.to(photons.device), self.design)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and the configuration: a key for what was made with them."""
        digest = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def save_prior(folder: Path, network: StepNetwork, config: Mapping[str, Any]) -> None:
    """Write weights, config and model card, each whole or not at all."""
    weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with whole_file(folder / WEIGHTS) as partial:
        partial.write_bytes(save(weights))
    write_json(folder / "config.json", config)
    with whole_file(folder / "README.md") as partial:
        partial.write_text(card(config), encoding="utf-8")


@lru_cache(maxsize=4)
def load_prior(folder: Path = SHIPPED, device: str | torch.device = "cpu") -> Prior:
    """Learned restoration of a folder, by default the one that comes with the project.

    Raises
    ------
    InputError
        If the folder holds no learned restoration, or its files are damaged.
    """
    config = read_json(folder / "config.json", "learned restoration")
    weights = folder / WEIGHTS
    if config.get("kind") != KIND or not weights.is_file():
        raise InputError(
            f"{folder} is no learned restoration; train one with train_restoration.py."
        )
    with naming_damage(folder / "config.json", "learned restoration"):
        if missing := [name for name in REQUIRED if name not in config]:
            raise ValueError(f"{', '.join(missing)} is missing")
        if config["channels"] != CHANNELS:
            raise ValueError(f"the network sees {config['channels']} images, not {CHANNELS}")
        if config["design"] not in get_args(Design) or config["steps"] != STEPS:
            raise ValueError(f"design {config['design']} of {config['steps']} steps is unknown")
    network = StepNetwork(CHANNELS, STEPS)
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{weights} is damaged ({reason}); train it again.") from error
    network.requires_grad_(False).eval()
    return Prior(network.to(device, memory_format=torch.channels_last), config)


def card(config: Mapping[str, Any]) -> str:
    """Text of the model card."""
    run, images = config["run"], config["training"]
    lines = [
        "# Learned restoration",
        "",
        f"Corrects {config['steps']} steps of Richardson-Lucy after {config['start_steps']} steps "
        f"with total variation. The network of {config['weights']:,} weights works on the "
        f"{config['design']}. `deconvolve.py --prior learned` uses it.",
        "",
        "## Holds for",
        "",
        f"Widefield images of {images['photons'][0]:g} to {images['photons'][1]:g} photons per "
        f"pixel, NA {images['na'][0]:g} to {images['na'][1]:g}, pixels of "
        f"{images['nyquist_share'][0]:g} to {images['nyquist_share'][1]:g} of the Nyquist pixel, "
        f"PSFs of {', '.join(images['psf_models'])}. Objects of other kinds than those of the "
        "training may get detail that is not there; `deconvolve.py` compares it with total "
        "variation on held-out photons.",
        "",
        "## Trained with",
        "",
        f"- {images['sources']} source images (built in and procedural) and fresh procedural ones",
        f"- {run['steps']:,} steps of {run['images']:,} images in all, {run['minutes']:.1f} minutes"
        f" in {run['processes']} processes",
        f"- command: `{run['command']}`",
        f"- commit {run['commit']}",
        "",
        "## Validation (source images never trained on)",
        "",
        "Gain over the blurred image, dB; `start` is Richardson-Lucy with total variation.",
        "",
        "| photons | start | learned |",
        "|---|---|---|",
        *(f"| {k} | {v['start']:.2f} | {v['learned']:.2f} |" for k, v in config["gains"].items()),
        "",
    ]
    return "\n".join(lines)
