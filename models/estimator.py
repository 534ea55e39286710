"""The estimator: a trained network with its configuration, applied to patches or whole images."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from models import error_bars
from models.context import ContextNet, facts_of, spread_keys
from models.data import normalise
from models.loss import Scaler, output_count, split_outputs
from models.model_card import interval_text
from models.networks import batch_for, exact_float32, for_inference
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope, Microscopes, cutoffs
from psf.model import PsfModel, from_config, um_per_label

# Relative excess over the trained range that draws no warning: objectives and pixel sizes are
# rarely known to better than 2 %.
OPTICS_TOLERANCE = 0.02


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
        with exact_float32(self.device):
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
