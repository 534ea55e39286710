"""BioImage.IO packages: a zip file with a network, its card, test tensors and a cover."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tifffile
import torch

from common.extras import needed
from common.pictures import new_figure, save_figure, show_image
from export.card import LICENCE, PAPER, PAPER_DOI, card, description
from export.examples import Case, simulated_case
from export.network import OUTPUTS
from export.onnx_file import OPSET, REQUIREMENTS
from models.estimator import Estimator, Prediction
from psf.errors import InputError

CITATION = Path(__file__).parents[1] / "CITATION.cff"
VERSION = "0.1.0"  # of the packages, semantic
SHOWN = 8  # test patches, in two rows of the cover, whose sides must be as 2 to 1
COVER_INCHES, COVER_DPI = 2.5, 100  # side of a patch in the cover, whose file is below 500 KB
TAGS = ("microscopy", "fluorescence-light-microscopy", "widefield", "2d", "psf", "deconvolution")
TAGS += ("depth-estimation", "blind-deconvolution", "onnx")


def bioimage_packages() -> tuple[ModuleType, ModuleType]:
    """The packages bioimageio.spec and bioimageio.core, which report nothing by themselves.

    Raises
    ------
    InputError
        If one of them is missing.
    """
    found = tuple(
        needed(name, "--format bioimageio", REQUIREMENTS, package=name)
        for name in ("bioimageio.spec", "bioimageio.core")
    )
    logger = needed("loguru", "--format bioimageio", REQUIREMENTS).logger
    for package in found:
        logger.disable(package.__name__)
    return found


def write_package(path: Path, onnx_file: Path, estimator: Estimator) -> None:
    """Write a package from an ONNX file of four outputs; its other parts come to lie beside that.

    Raises
    ------
    InputError
        If the package does not pass `check_package`.
    """
    spec, _ = bioimage_packages()
    folder = onnx_file.parent
    case, expected = chosen_patches(estimator)
    tensors = {"patches": case.patches, "cutoff": case.cutoffs}
    tensors |= {name: getattr(expected, name) for name in OUTPUTS}
    for name, tensor in tensors.items():
        np.save(folder / f"{name}.npy", tensor.numpy())
    draw_cover(folder / "cover.png", case.patches, expected)
    text = card(estimator, onnx_file.name, with_context=False)
    (folder / "README.md").write_text(text, encoding="utf-8")
    tifffile.imwrite(folder / "patches.tif", case.patches.numpy(), imagej=True)
    try:
        model = spec.ModelDescr(**model_fields(estimator, folder, onnx_file.name))
        spec.save_bioimageio_package(model, output_path=path)
    except ValueError as error:  # of pydantic, also where its version does not fit
        raise InputError(f"bioimageio.spec refuses the package: {_first_line(error)}") from error
    check_package(path)


def chosen_patches(estimator: Estimator) -> tuple[Case, Prediction]:
    """Patches with content, from the smallest value to the largest, and what PyTorch says."""
    case = simulated_case(estimator, 6 * SHOWN)
    found = estimator.predict(case.patches, case.microscopes)
    numbers = torch.nonzero(found.content_probability >= 0.5)[:, 0]
    if len(numbers) < SHOWN:  # a network with hardly any training
        numbers = torch.arange(len(case.patches))
    rising = numbers[found.values[numbers, 0].argsort()]
    chosen = rising[torch.linspace(0, len(rising) - 1, SHOWN).round().long()]
    shown = Case("test", case.patches[chosen], [case.microscopes[i] for i in chosen.tolist()])
    return shown, estimator.predict(shown.patches, shown.microscopes)


def draw_cover(path: Path, patches: torch.Tensor, found: Prediction) -> None:
    """Picture of patches with the first parameter that the network reads from each."""
    figure, axes = new_figure(2, SHOWN // 2, COVER_INCHES, COVER_INCHES)
    name = found.names[0].replace("_", " ")
    values, errors = found.values[:, 0].tolist(), found.standard_deviations[:, 0].tolist()
    for one, patch, value, error in zip(axes.flat, patches, values, errors, strict=True):
        show_image(one, patch.numpy())
        one.set_title(f"{name} {value:.2f} ± {error:.2f} {found.unit}", fontsize=8)
    save_figure(path, figure, dpi=COVER_DPI)


def model_fields(estimator: Estimator, folder: Path, model_file: str) -> dict[str, Any]:
    """Fields of the description of a model in format 0.5, with the files of a folder."""
    size, names = estimator.patch_size, list(estimator.config["label_names"])
    batch = {"type": "batch"}
    space = [{"type": "space", "id": axis, "size": size} for axis in ("y", "x")]
    parameters = [batch, {"type": "channel", "channel_names": names}]
    cutoff = "not used" if estimator.psf_model.is_gaussian else "2 NA pixel / wavelength, per px"
    unit = estimator.config["label_unit"]

    def tensor(name: str, axes: Sequence[Mapping], text: str) -> dict[str, Any]:
        file = {"source": folder / f"{name}.npy"}
        return {"id": name, "axes": axes, "description": text, "test_tensor": file}

    return {
        # the format allows no other characters in a name
        "name": f"PSF estimation {re.sub('[^A-Za-z0-9+() -]', ' ', estimator.name)}",
        "description": description(estimator),
        "version": VERSION,
        "authors": [{"name": name} for name in authors()],
        "license": LICENCE,
        "cite": [{"text": PAPER, "doi": PAPER_DOI}],
        "tags": list(TAGS),
        "covers": [{"source": folder / "cover.png"}],
        "documentation": {"source": folder / "README.md"},
        "inputs": [
            tensor("patches", [batch, *space], "intensities in any linear unit")
            | {"sample_tensor": {"source": folder / "patches.tif"}},
            tensor("cutoff", [batch], f"cut-off frequency of the optics: {cutoff}"),
        ],
        "outputs": [
            tensor("values", parameters, f"PSF parameters, {unit}"),
            tensor("standard_deviations", parameters, f"half widths of 68 % intervals, {unit}"),
            tensor("half_widths_95", parameters, f"half widths of 95 % intervals, {unit}"),
            tensor("content_probability", [batch], "that there is anything to estimate from"),
        ],
        "weights": {"onnx": {"source": folder / model_file, "opset_version": OPSET}},
        "config": {"bioimageio": {"modality": "widefield microscopy", "task": "PSF estimation"}},
    }


def authors() -> list[str]:
    """Names of the authors of this project, from CITATION.cff."""
    entries = CITATION.read_text(encoding="utf-8").split("\nauthors:\n")[1]
    block = re.match(r"(?: .*\n)+", entries)[0]
    people = []
    for entry in re.split(r"^ *- ", block, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^ *([\w-]+): *(.+?) *$", entry, flags=re.MULTILINE))
        full = f"{fields.get('given-names', '')} {fields.get('family-names', '')}".strip()
        people.append(fields.get("name", full))
    return people


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def check_package(path: Path) -> None:
    """Validate a package by bioimageio.spec, and run it by bioimageio.core.

    Raises
    ------
    InputError
        If it breaks a rule of the format, or does not reproduce its test outputs.
    """
    spec, core = bioimage_packages()
    try:
        model = spec.load_model_description(path, perform_io_checks=True)
    except ValueError as error:
        raise InputError(f"bioimageio.spec refuses the package: {_first_line(error)}") from error
    summary = core.test_model(model, weight_format="onnx", devices=["cpu"])
    if summary.status != "passed":
        reasons = "; ".join(f"{error.loc}: {error.msg}" for error in summary.errors)
        raise InputError(f"bioimageio.core refuses the package: {reasons}")
