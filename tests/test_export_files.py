"""Exported files, made and run by the packages of requirements-export.txt."""

import gc
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import export_model
from export import bioimage
from export.card import facts
from export.comparison import compare_images, compare_patches, output_differences, refuse_different
from export.examples import simulated_case
from export.network import OUTPUTS
from models.checkpoint import SHIPPED, load_estimator, shipped_names
from psf import InputError, Microscope

ROOT = Path(__file__).parents[1]
SAME = 1e-4  # of the label's range: what an exported network may differ by


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of the ONNX files of `focus`."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported")
    export_model.main(export_model.Config(Path("focus"), folder))
    return folder


@pytest.mark.slow
def test_onnx_files_are_whole(exported):
    import onnx

    record = json.loads((exported / "config.json").read_text())
    names = {"README.md", "config.json", "context.onnx", "model.onnx"}
    assert set(record["files"]) == names == {path.name for path in exported.iterdir()}
    model = onnx.load(exported / "model.onnx")
    about = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(about["label_ranges"]) == [[0.0, 4.0]] and about["patch_size"] == "128"
    assert about["licence"] == "BSD-3-Clause" and "2 NA pixel_size / wavelength" in about["cutoff"]
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)
    assert not any("wrap" in str(node.attribute) for node in model.graph.node)  # not in opset 18
    assert str(ROOT).encode() not in (exported / "model.onnx").read_bytes()


@pytest.mark.slow
def test_the_lines_of_the_documents_run(exported, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    lines = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    estimator = load_estimator("focus")
    case = simulated_case(estimator, 2)
    image = torch.cat(list(case.patches), 1).numpy()
    tifffile.imwrite(tmp_path / "image.tif", image)
    (tmp_path / "exported").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines, names)
    expected = estimator.predict(torch.from_numpy(image[None, :128, :128]), Microscope())
    assert np.allclose(names["values"], expected.values, atol=SAME * 4)
    assert np.allclose(names["half_widths_95"], expected.half_widths_95, atol=SAME * 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names())
def test_onnx_predicts_as_pytorch(name, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    from export.onnx_file import write_image_network, write_patch_network

    estimator = load_estimator(SHIPPED / name)
    about, has_context = facts(estimator, 18), estimator.context is not None
    write_patch_network(tmp_path / "model.onnx", estimator, about, has_context)
    refuse_different(compare_patches(tmp_path / "model.onnx", estimator))
    if has_context:
        write_image_network(tmp_path / "context.onnx", estimator, about)
        refuse_different(
            compare_images(tmp_path / "model.onnx", tmp_path / "context.onnx", estimator)
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # bioimageio.spec leaves files open
def test_bioimage_packages_are_accepted(tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript", "bioimageio.core"):
        pytest.importorskip(package)
    import bioimageio.core
    import bioimageio.spec

    export_model.main(export_model.Config(Path("zernike2d_tilted"), tmp_path, "bioimageio"))
    path = tmp_path / "bioimageio.zip"
    model = bioimageio.spec.load_model_description(path, perform_io_checks=True)
    assert model.validation_summary.status == "valid-format"
    assert model.license == "BSD-3-Clause" and model.cite[0].doi == "10.1109/TIP.2020.2986880"
    assert bioimageio.core.test_model(path).status == "passed"
    estimator = load_estimator("zernike2d_tilted")
    case = simulated_case(estimator, 5, seed=3)
    inputs = {"patches": case.patches.numpy(), "cutoff": case.cutoffs.numpy()}
    found = bioimageio.core.predict(model=model, inputs=inputs)
    outputs = {name: np.asarray(found.members[name].data) for name in OUTPUTS}
    expected = estimator.predict(case.patches, case.microscopes)
    ranges = estimator.config["label_ranges"]
    assert max(output_differences(outputs, expected, ranges).values()) < SAME
    # a package whose test output is wrong must not pass
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(broken, "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "rdf.yaml":
                content = re.sub(rb"\n *sha256: .*", b"", content)
            changed.writestr(name, content if name != "values.npy" else shifted(content))
    with pytest.raises(InputError, match=r"bioimageio\.core refuses the package"):
        bioimage.check_package(broken)
    gc.collect()


def shifted(npy: bytes) -> bytes:
    """Bytes of an array file with all values 0.1 higher."""
    values = np.load(io.BytesIO(npy))
    written = io.BytesIO()
    np.save(written, values + np.float32(0.1))
    return written.getvalue()
