"""Export a network for other programs: as an ONNX file, or as a package for the BioImage.IO zoo.

    python export_model.py zernike1d_tilted --format onnx --out exported/zernike1d_tilted
    python export_model.py zernike1d_tilted --format bioimageio --out exported/package

The exported network is whole: it takes patches in any linear unit and the cut-off frequency of the
optics, and returns values with error bars. It is compared with PyTorch before anything is written.
Writes model.onnx, and context.onnx if the network sees images as a whole; or bioimageio.zip. Beside
it come a model card and config.json. Needs `pip install -r requirements-export.txt`.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common.command import run
from common.files import run_record
from common.output import new_result, write_record
from export.bioimage import bioimage_packages, write_package
from export.card import card, facts
from export.comparison import (
    Differences,
    compare_images,
    compare_patches,
    largest_of_range,
    refuse_different,
)
from export.onnx_file import OPSET, onnx_packages, write_image_network, write_patch_network
from models.checkpoint import load_estimator
from models.estimator import Estimator

MODEL, CONTEXT, PACKAGE, CARD = "model.onnx", "context.onnx", "bioimageio.zip", "README.md"


@dataclass(frozen=True)
class Config:
    """Settings of an export."""

    checkpoint: tyro.conf.Positional[Path]  # network: a folder, or the name of a shipped one
    out: Path  # folder to write
    format: Literal["onnx", "bioimageio"] = "onnx"  # files for ONNX runtimes, or a zip for the zoo


def export_onnx(estimator: Estimator, folder: Path) -> Differences:
    """Write the ONNX files and their card; the differences from PyTorch by case."""
    about = facts(estimator, OPSET)
    has_context = estimator.context is not None
    write_patch_network(folder / MODEL, estimator, about, has_context)
    differences = compare_patches(folder / MODEL, estimator)
    if has_context:
        write_image_network(folder / CONTEXT, estimator, about)
        differences |= compare_images(folder / MODEL, folder / CONTEXT, estimator)
    refuse_different(differences)
    (folder / CARD).write_text(card(estimator, MODEL, has_context), encoding="utf-8")
    return differences


def export_package(estimator: Estimator, folder: Path) -> Differences:
    """Write the BioImage.IO package and its card; the differences from PyTorch by case."""
    # bioimageio.spec leaves files open, which Windows then does not delete
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        onnx_file = Path(scratch) / MODEL
        write_patch_network(onnx_file, estimator, facts(estimator, OPSET))
        differences = compare_patches(onnx_file, estimator)
        refuse_different(differences)
        write_package(folder / PACKAGE, onnx_file, estimator)
        (folder / CARD).write_bytes((onnx_file.parent / CARD).read_bytes())
    return differences


def export(config: Config, folder: Path) -> list[str]:
    """Write the files of an export to a folder; lines about them."""
    estimator = load_estimator(config.checkpoint)
    is_onnx = config.format == "onnx"
    differences = (export_onnx if is_onnx else export_package)(estimator, folder)
    record = run_record(**facts(estimator, OPSET), differences=differences)
    write_record(folder / "config.json", record)
    following = (
        f"give patches and cut-offs to {MODEL}; {CARD} has the lines of Python"
        if is_onnx
        else "upload the zip at https://bioimage.io, with your names as its authors"
    )
    largest = largest_of_range(differences)
    return [
        f"largest difference from PyTorch: {largest:.1e} of the label's range",
        *([] if is_onnx else ["bioimageio.spec and bioimageio.core accept the package"]),
        f"wrote {', '.join(sorted(path.name for path in folder.iterdir()))} to {config.out}",
        f"next: {following}",
    ]


def main(config: Config) -> None:
    """Export, compare, write."""
    onnx_packages()
    if config.format == "bioimageio":
        bioimage_packages()
    with new_result(config.out, "config.json", (MODEL, CONTEXT, PACKAGE, CARD)) as folder:
        lines = export(config, folder)
    print("\n".join(lines))


if __name__ == "__main__":
    run(Config, main, __doc__)
