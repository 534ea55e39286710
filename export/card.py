"""What a user of an exported network must know: facts for programs, and a card for people."""

from collections.abc import Mapping
from typing import Any

from export.network import OUTPUTS, PARTS
from models.estimator import Estimator
from models.model_card import interval_text, model_card
from models.resampling import COARSEST, INTERPOLATED

LICENCE = "BSD-3-Clause"
CUTOFF = "2 NA pixel_size / wavelength, cycles per px"
PAPER = "Shajkofci & Liebling, IEEE Trans. Image Processing 29, 5848 (2020)"
PAPER_DOI = "10.1109/TIP.2020.2986880"
# Labels by name. Wavefronts are W = focus rho^2 + ast (rho cos(theta - angle))^2 in waves, over the
# radius rho of the pupil.
MEANINGS = {
    "focus": "defocus, the coefficient of rho^2 in the wavefront; one wave is "
    "2 refractive_index wavelength / NA^2 of depth",
    "ast_cos2": "astigmatism times cos(2 angle)",
    "ast_sin2": "astigmatism times sin(2 angle)",
    "fwhm": "full width at half maximum of a Gaussian PSF",
    "fwhm_x": "full width at half maximum along x of a Gaussian PSF",
    "fwhm_y": "full width at half maximum along y of a Gaussian PSF",
}
SINGLE = (
    "It reads each patch by itself. A second network, which sees all patches of an image together, "
    "is in the ONNX export of this network, not in this package."
)
MEANING_OF_OUTPUTS = {
    "values": "PSF parameters, in the order of label_names",
    "standard_deviations": "half widths of the 68 % intervals, calibrated on simulated images",
    "half_widths_95": "half widths of the 95 % intervals",
    "content_probability": "that the patch has content to estimate from; ignore it below 0.5",
    "features": "for context.onnx",
    "facts": "for context.onnx: logarithm of the contrast, and share of noise",
}


def facts(estimator: Estimator, opset: int) -> dict[str, Any]:
    """Facts about a network that other programs need, as plain values."""
    config = estimator.config
    return {
        "name": estimator.name,
        "psf_model": dict(config["psf_model"]),
        "label_names": list(config["label_names"]),
        "label_unit": config["label_unit"],
        "label_ranges": [list(limits) for limits in config["label_ranges"]],
        "patch_size": estimator.patch_size,
        "cutoff": "not used" if estimator.psf_model.is_gaussian else CUTOFF,
        "optics_limits": {name: list(limits) for name, limits in config["optics_limits"].items()},
        "training_commit": config.get("run", {}).get("commit"),
        "weights": estimator.fingerprint,
        "opset": opset,
        "licence": LICENCE,
        "cite": f"{PAPER}, doi {PAPER_DOI}",
    }


def description(estimator: Estimator) -> str:
    """One sentence: what the network reads from what."""
    labels, unit = ", ".join(estimator.config["label_names"]), estimator.config["label_unit"]
    return (
        f"Estimates the PSF of a widefield image from a patch of {estimator.patch_size} x "
        f"{estimator.patch_size} px: {labels} ({unit}), with error bars."
    )


def card(estimator: Estimator, model_file: str, with_context: bool) -> str:
    """Text of the README.md beside an exported network."""
    config, size = estimator.config, estimator.patch_size
    ranges = zip(config["label_names"], config["label_ranges"], strict=True)
    outputs = OUTPUTS + (PARTS if with_context else ())
    lines = [
        f"# {estimator.name}: PSF parameters from one microscope image",
        "",
        f"{description(estimator)} The network was trained on simulated images only.",
        "",
        "| label | unit | range | meaning |",
        "|---|---|---|---|",
        *(
            f"| {name} | {config['label_unit']} | {interval_text(*limits, '')} "
            f"| {MEANINGS.get(name, 'see psf_model in the metadata of the file')} |"
            for name, limits in ranges
        ),
        *_signs(estimator),
        "",
        "## Inputs and outputs",
        "",
        f"| {model_file} | shape | meaning |",
        "|---|---|---|",
        f"| patches (input) | N, {size}, {size}, float32 | intensities in any linear unit, without "
        "NaN; the network normalises them |",
        f"| cutoff (input) | N, float32 | {_cutoff(estimator)} |",
        *(f"| {name} | {_shape(name)}, float32 | {MEANING_OF_OUTPUTS[name]} |" for name in outputs),
        "",
        *_snippet(size),
        *(_context() if with_context else []),
        *_limits(estimator, with_context or estimator.context is None),
        *_training(config),
        "## Licence and citation",
        "",
        f"{LICENCE}. Please cite the paper of the method: {PAPER}, doi {PAPER_DOI}.",
        "",
    ]
    return "\n".join(lines)


def _signs(estimator: Estimator) -> list[str]:
    """What one image cannot tell."""
    model = estimator.psf_model
    if model.name == "astigmatic":
        return [
            "",
            f"The microscope must have a cylindrical lens that adds {model.known_ast_waves:g} wave "
            "of astigmatism along x. It gives the defocus a sign: positive where the object lies "
            "farther from the objective than the focal plane.",
        ]
    if model.name in ("zernike1d", "zernike2d"):
        return ["", "The defocus has no sign: one image gives its magnitude only."]
    return []


def _cutoff(estimator: Estimator) -> str:
    if estimator.psf_model.is_gaussian:
        return "not used by this network; give any number"
    return f"cut-off frequency, {CUTOFF}"


def _shape(name: str) -> str:
    return {"content_probability": "N", "features": "N, 256", "facts": "N, 2"}.get(name, "N, P")


def _snippet(size: int) -> list[str]:
    """Use in Python."""
    return [
        "```python",
        "import numpy as np, onnxruntime",
        'network = onnxruntime.InferenceSession("model.onnx")',
        f"patches = image[None, :{size}, :{size}].astype(np.float32)  # (N, {size}, {size})",
        "cutoff = np.full(len(patches), 2 * na * pixel_um / wavelength_um, np.float32)",
        'found = network.run(None, {"patches": patches, "cutoff": cutoff})',
        "values, deviations, half_widths_95, content = found[:4]",
        "```",
        "",
    ]


def _context() -> list[str]:
    """Use of the network that sees whole images."""
    return [
        "## Images seen as a whole",
        "",
        "context.onnx takes all patches of an image or a focal stack, K planes of M places, and "
        "corrects their estimates. Its outputs have K M rows, plane by plane.",
        "",
        "| context.onnx | shape | meaning |",
        "|---|---|---|",
        "| features (input) | K, M, 256, float32 | output of model.onnx |",
        "| facts (input) | K, M, 2, float32 | output of model.onnx |",
        "| places (input) | M, 2, float32 | row and column of the patches, in patch sizes |",
        "| keys (input) | S, int64 | numbers of the patches that all others attend to: every "
        "patch, or 256 random ones of more |",
        "",
    ]


def _limits(estimator: Estimator, is_whole: bool) -> list[str]:
    """What the network holds for."""
    lines = [] if is_whole else [SINGLE, ""]
    if estimator.psf_model.is_gaussian:
        return ["## Holds for", "", "Widths are in pixels, for any optics.", "", *lines]
    limits = estimator.config["optics_limits"]
    low, high = limits["cutoff_cycles_per_pixel"]
    optics = [f"| {name} | {interval_text(*ends, '')} |" for name, ends in limits.items()]
    return [
        "## Holds for",
        "",
        "| optics | trained on |",
        "|---|---|",
        *optics,
        "",
        "The exported network does not warn of other optics. Compressed or sharpened images were "
        "not in the training.",
        "",
        f"Images with finer pixels (cutoff below {low:.4g}) must be binned first: average b x b "
        f"pixels with b = ceil({low:.4g} / cutoff), and give b times the cutoff. If that is above "
        f"{min(high, COARSEST):.4g}, resample the image with a low-pass interpolation to a cutoff "
        f"of {min(high, INTERPOLATED):.4g} instead.",
        "",
        *lines,
    ]


def _training(config: Mapping[str, Any]) -> list[str]:
    """The sections of the checkpoint's card on training and validation."""
    text = model_card(config)
    start, end = text.index("## Trained with"), text.find("## Images seen as a whole")
    return [*text[start : end if end >= 0 else None].rstrip().splitlines(), ""]
