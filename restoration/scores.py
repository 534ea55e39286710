"""Scores of a restoration whose truth is known."""

import math

import torch
from skimage.metrics import structural_similarity

from restoration.frc import PAIR_THRESHOLD, TRUTH_THRESHOLD, resolution_px, ring_correlation
from restoration.scenes import Scene

BORDER = 32  # px that the centre leaves out
FEWEST_SHARP = 0.02  # share of the field below which the score of sharp places is left out


def snr_db(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Power of the truth over that of the error, dB."""
    error = (found - truth).double().square().mean()
    return float(10 * torch.log10(truth.double().square().mean() / error))


def score(found: torch.Tensor, scene: Scene) -> dict[str, float]:
    """SNR gain, PSNR and SSIM of the field and its centre, and SNR gain of the sharp places.

    Gains are over the blurred input, in dB. That of the sharp places is NaN if there are few.
    """
    inner = slice(BORDER, -BORDER)
    row = {}
    parts = (("", (slice(None), slice(None))), ("_centre", (inner, inner)))
    for name, part in parts:
        one, truth, image = found[part], scene.truth[part], scene.image[part]
        peak = float(truth.max())
        rms = float((one - truth).double().square().mean().sqrt())
        row[f"snr_gain{name}_db"] = snr_db(one, truth) - snr_db(image, truth)
        row[f"psnr{name}_db"] = 20 * math.log10(peak / rms)
        ssim = structural_similarity(one.numpy(), truth.numpy(), data_range=peak)
        row[f"ssim{name}"] = float(ssim)
    sharp = scene.sharp
    enough = float(sharp.float().mean()) > FEWEST_SHARP
    gain = snr_db(found[sharp], scene.truth[sharp]) - snr_db(scene.image[sharp], scene.truth[sharp])
    row["snr_gain_sharp_db"] = gain if enough else math.nan
    return row


def agreement(
    found: torch.Tensor, second: torch.Tensor | None, scene: Scene
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Resolutions of a restoration in um, and its Fourier ring correlations.

    `frc_pair` is with the restoration of the second exposure, `frc_truth` with the truth. Without a
    second restoration the first of them is NaN, and empty.
    """
    to_um = scene.labels.microscope.pixel_size_um
    resolutions, curves = {"frc_pair_um": math.nan}, {"frc_pair": []}
    others = {"pair": (second, PAIR_THRESHOLD), "truth": (scene.truth, TRUTH_THRESHOLD)}
    for name, (other, threshold) in others.items():
        if other is not None:
            curve = ring_correlation(found, other)
            resolutions[f"frc_{name}_um"] = to_um * resolution_px(curve, threshold)
            curves[f"frc_{name}"] = curve.tolist()
    return resolutions, curves
