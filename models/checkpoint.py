"""Checkpoints: folders with model.safetensors, config.json and a model card, and their use.

config.json describes how to rebuild and apply the network: architecture, patch size, names, units
and ranges of the labels, and the optics of the training.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from common.files import naming_damage, read_json, whole_file, write_json
from models import error_bars
from models.context import ContextNet, facts_of, spread_keys
from models.data import normalise
from models.loss import Scaler, output_count, split_outputs
from models.model_card import interval_text, model_card
from models.networks import batch_for, build, exact_float32, for_inference
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope, Microscopes, cutoffs
from psf.model import PsfModel, from_config, um_per_label

# Relative excess over the trained range that draws no warning: objectives and pixel sizes are
# rarely known to better than 2 %.
OPTICS_TOLERANCE = 0.02
# Entries of config.json without which a network cannot be applied.
REQUIRED = ("architecture", "psf_model", "label_names", "label_unit", "label_ranges")
REQUIRED += ("patch_size", "optics_limits")
CONTEXT_FILE = "context.safetensors"  # weights of the network that sees whole images
LARGEST_PATCH_PX = 4096  # more than any network can take at once; a larger number is damage
SHIPPED = Path(__file__).parents[1] / "checkpoints"  # the weights that come with the project
AUTO = "auto"  # the value of --checkpoint that stands for the advised network
# Advised for widefield images: it allows tilted objects, and the widest range of optics.
ADVISED = "zernike1d_tilted"


class OpticsWarning(UserWarning):
    """The optics lie outside the range that a network was trained for."""


@dataclass(frozen=True)
class Prediction:
    """PSF parameters of N patches, with error bars."""

    names: tuple[str, ...]  # of the P parameters
    unit: str  # of values and standard deviations
    values: torch.Tensor  # (N, P)
    standard_deviations: torch.Tensor  # (N, P), half widths of the 68 % intervals
    half_widths_95: torch.Tensor  # (N, P) of the 95 % intervals
    content_probability: torch.Tensor  # (N,), that the patch has content to estimate from


@dataclass(frozen=True)
class Estimator:
    """A trained network with its configuration; see `load_estimator`."""

    network: nn.Module
    config: Mapping[str, Any]
    device: torch.device
    name: str = ""  # of its folder
    context: ContextNet | None = (
        None  # sees the patches of an image together; None: no such network
    )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and the configuration: a key for what was made with them."""
        digest = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        for network in filter(None, (self.network, self.context)):
            for name, tensor in sorted(network.state_dict().items()):
                digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def psf_model(self) -> PsfModel:
        """PSF model whose labels the network predicts."""
        return from_config(self.config["psf_model"])

    @cached_property
    def fast_network(self) -> nn.Module:
        """The network for prediction, see `for_inference`."""
        return for_inference(self.network)

    @property
    def patch_size(self) -> int:
        """Side of the patches that the network takes, px."""
        return self.config["patch_size"]

    def um_per_unit(self, microscope: Microscope) -> dict[str, float]:
        """Length in um of one unit of each label that is a length; see `psf.model.um_per_label`."""
        return um_per_label(self.psf_model, microscope)

    @torch.inference_mode()
    def predict(
        self, patches: torch.Tensor, microscope: Microscopes, batch_size: int | None = None
    ) -> Prediction:
        """PSF parameters of patches, with error bars.

        Parameters
        ----------
        patches : (N, H, W) tensor or array
            H and W are `patch_size`. Any unit that is linear in intensity; they are normalised
            here.
        microscope : one Microscope, or a sequence of N
        batch_size : patches that the network sees at once; by default `batch_for` the device

        Raises
        ------
        InputError
            If the patches have another size or contain NaN.

        Warns
        -----
        OpticsWarning
            If optics or sampling lie outside the range of the training.
        """
        patches = torch.as_tensor(patches)
        self._check_patches(patches)
        self._check_optics(microscope)
        batch = batch_size or batch_for(self.device)
        outputs, noise = self._outputs(patches, self._cutoffs(microscope), batch)
        return self._prediction(outputs, noise, self.config)

    @torch.inference_mode()
    def features(
        self, patches: torch.Tensor, microscope: Microscope
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `predict_together` needs of patches (N, H, W): features (N, F) and facts (N, 2).

        Raises
        ------
        InputError
            As `predict`.

        Warns
        -----
        OpticsWarning
            As `predict`.
        """
        patches = torch.as_tensor(patches)
        self._check_patches(patches)
        self._check_optics(microscope)
        cutoff = self._cutoffs(microscope)
        found = []
        with exact_float32(self.device):
            for part in patches.split(batch_for(self.device)):
                part = part.float().to(self.device)
                batch = normalise(part)
                features = self.fast_network.features(batch, cutoff.expand(len(part)))
                found.append((features, facts_of(part, batch)))
        features, facts = (torch.cat(column).cpu() for column in zip(*found, strict=True))
        return features, facts

    @torch.inference_mode()
    def predict_together(
        self, features: torch.Tensor, facts: torch.Tensor, places: torch.Tensor
    ) -> Prediction:
        """PSF parameters of the patches of an image, or of all planes of a stack, seen together.

        Parameters
        ----------
        features, facts : (K, M, F) and (K, M, 2), see `features`, of K planes and M places
        places : (M, 2) row and column of the places, in patches

        Returns
        -------
        Prediction of the K M patches, plane by plane. Without a network for it, each patch counts
        by itself.
        """
        flat, noise = features.flatten(0, 1).to(self.device), facts[..., 1].flatten()
        outputs = self.fast_network.outputs(flat)
        if self.context is None:
            return self._prediction(outputs.cpu(), noise, self.config)
        keys = spread_keys(len(flat), self.device)
        seen = (t[None].to(self.device) for t in (features, facts, places))
        outputs = outputs + self.context(*seen, keys)[0].flatten(0, 1)
        return self._prediction(outputs.cpu(), noise, self.config["context"])

    def _prediction(
        self, outputs: torch.Tensor, noise: torch.Tensor, calibrated: Mapping[str, Any]
    ) -> Prediction:
        """Prediction of outputs (N, outputs), with the error bars of a calibration."""
        values, log_variances, logits = split_outputs(outputs)
        scaler = Scaler.from_ranges(self.config["label_ranges"])
        deviations = (log_variances / 2).exp()
        factors = error_bars.interval_factors(calibrated, deviations, noise)  # (2, N, P)
        return Prediction(
            names=tuple(self.config["label_names"]),
            unit=self.config["label_unit"],
            values=scaler.unscale(values),
            standard_deviations=deviations * factors[0] * scaler.half_range,
            half_widths_95=deviations * factors[1] * scaler.half_range,
            content_probability=logits.sigmoid(),
        )

    def _check_patches(self, patches: torch.Tensor) -> None:
        if patches.ndim != 3 or patches.shape[1:] != (self.patch_size, self.patch_size):
            raise InputError(
                f"patches have shape {tuple(patches.shape)}; this network takes "
                f"(N, {self.patch_size}, {self.patch_size})."
            )
        if not torch.isfinite(patches).all():
            raise InputError("patches contain NaN or infinite values.")

    def _outputs(
        self, patches: torch.Tensor, cutoff: torch.Tensor, batch_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of the network (N, outputs) and noise shares (N,), on the CPU."""
        width = output_count(len(self.psf_model.label_names))
        outputs = [torch.zeros(0, width, device=self.device)]
        noise = [torch.zeros(0, device=self.device)]
        cutoff = cutoff.expand(len(patches))
        with exact_float32(self.device):
            for part, its_cutoff in zip(
                *(x.split(batch_size) for x in (patches, cutoff)), strict=True
            ):
                # converted first, because MPS has no float64, and no uint16 before torch 2.9
                batch = normalise(part.float().to(self.device))
                noise.append(error_bars.noise_share(batch))
                outputs.append(self.fast_network(batch, its_cutoff).float())
        # moved at the end, so that a GPU works on while the next batch is prepared
        return torch.cat(outputs).cpu(), torch.cat(noise).cpu()

    def _cutoffs(self, microscope: Microscopes) -> torch.Tensor:
        """Cut-off frequencies (N,) or (1,), cycles per px.

        The optics do not decide a blur in pixels, so Gaussians take the cut-off of the training.
        """
        if self.psf_model.is_gaussian:
            trained = self.config["optics_limits"]["cutoff_cycles_per_pixel"]
            return torch.tensor(trained, device=self.device).mean(0, keepdim=True)
        return cutoffs(microscope, self.device)

    def _check_optics(self, microscopes: Microscopes) -> None:
        if self.psf_model.is_gaussian:
            return  # a width in pixels does not depend on the optics
        limits = self.config["optics_limits"]
        for microscope in [microscopes] if isinstance(microscopes, Microscope) else microscopes:
            outside = outside_limits(microscope, limits)
            if outside:
                warnings.warn(
                    f"this network was trained for other optics: {'; '.join(outside)}. "
                    "Its values may be wrong; train a network for your optics.",
                    OpticsWarning,
                    stacklevel=3,
                )
                return


def outside_limits(microscope: Microscope, limits: Mapping[str, Any]) -> list[str]:
    """Numbers of a microscope that lie outside limits {name: [low, high]}, one phrase each."""
    numbers = dict(zip(OPTICS_NAMES, astuple(microscope), strict=True))
    numbers["cutoff_cycles_per_pixel"] = microscope.cutoff_cycles_per_pixel
    outside = {
        name: f"{name} {numbers[name]:.4g}, trained on {interval_text(low, high, '')}"
        for name, (low, high) in limits.items()
        if not low * (1 - OPTICS_TOLERANCE) <= numbers[name] <= high * (1 + OPTICS_TOLERANCE)
    }
    if len(outside) > 1:
        outside.pop("cutoff_cycles_per_pixel", None)  # the user gave the other numbers, not this
    return list(outside.values())


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
