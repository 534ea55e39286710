"""Exported networks: the same numbers as PyTorch, in a form that other programs can run."""

import ast
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import export_model
from common import command
from export import bioimage, spectrum
from export.card import card
from export.comparison import LIMITS, output_differences, refuse_different
from export.context import ImageNetwork
from export.error_bars import IntervalTables
from export.examples import COUNTS_16_BIT, cases, microscopes_across
from export.network import OUTPUTS, PatchNetwork, normalised
from models import error_bars
from models.checkpoint import load_estimator, shipped_names
from models.context import spread_keys
from models.data import normalise
from models.spectrum import polar_log_spectra, welch_spectrum
from psf import InputError
from psf.microscope import cutoffs

ROOT = Path(__file__).parents[1]
EXACT = 1e-10  # relative, of the same sums in float64 in another order
SAME = 1e-4  # of the label's range: what an exported network may differ by


@pytest.fixture(scope="module")
def textures():
    """Patches (6, 128, 128) of smooth textures in counts, one constant, one with photon noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(6, 1, 140, 140, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 13, 1)[:, 0]
    smooth = torch.stack([smooth[i] * 10.0**i for i in range(6)])
    smooth[0] = 500.1
    smooth[5] = torch.poisson(smooth[5].clamp(max=1e6) / 1e3, generator=generator)
    return smooth


# --- the parts of an exported network, in PyTorch


@pytest.mark.parametrize("window", [64, 128])
def test_matrix_products_give_the_spectrum(textures, window):
    patches = normalise(textures.double())
    expected = welch_spectrum(patches, window)
    found = spectrum.welch_spectrum(patches, window)
    assert torch.allclose(found, expected, rtol=EXACT, atol=EXACT * float(expected.max()))


def test_polar_spectra_are_those_of_the_network(textures):
    patches = normalise(textures.double())
    cutoff = torch.tensor([0.425, 0.5, 0.6, 0.9, 1.2, 1.65], dtype=torch.float64)
    expected = polar_log_spectra(patches, cutoff)
    found = spectrum.polar_log_spectra(patches, cutoff, (64, 128), 80, 16)
    assert float((found - expected).abs().max()) < 1e-6
    turned = spectrum.polar_log_spectra(patches.flip(1), cutoff, (64, 128), 80, 16)
    assert float((turned - expected).abs().max()) > 0.1  # not blind to the direction


def test_normalisation_keeps_a_low_contrast(textures):
    standard = normalise(textures[1:5].double())
    faint = (1e4 * (1 + 1e-3 * standard)).float()
    exact = normalise(faint.double()).float()
    assert float((normalised(faint)[0] - exact).abs().max()) < 2e-6
    flat, deviation = normalised(torch.tensor([0.0, 500.1])[:, None, None].expand(2, 64, 64))
    assert (flat == 0).all() and (deviation == 0).all()


def test_facts_are_those_of_the_estimator(textures):
    estimator = load_estimator("focus")
    microscope = microscopes_across(estimator, 3)[1]
    cutoff = cutoffs(microscope).expand(len(textures))
    with torch.no_grad():
        *_, features, facts = PatchNetwork(estimator, parts=True)(textures, cutoff)
    expected = estimator.features(textures, microscope)
    assert torch.allclose(features, expected[0], atol=1e-3, rtol=1e-3)
    assert torch.allclose(facts, expected[1], rtol=1e-4)


def test_error_bars_are_those_of_the_tables():
    rising = [[-3.0, -2.5, -1.0], [-2.0, -1.0]]
    tables = [
        {"log_deviation": x, "factor_68": [0.5 + i, 2.0, 3.0][: len(x)], "factor_95": x[::-1]}
        for i, x in enumerate(rising)
    ]
    one = {"log_deviation": [0.0], "factor_68": [1.5], "factor_95": [2.5]}
    config = {
        "calibration": [
            {"log_noise": [-4.0, -1.0], "tables": tables},
            {"log_noise": [0.0], "tables": [one]},
        ]
    }
    deviations = torch.tensor([-4.0, -2.7, -1.5, -0.5]).exp()[:, None].repeat(1, 2)
    noise = torch.tensor([-6.0, -3.1, -1.2, -0.1]).exp()
    expected = error_bars.interval_factors(config, deviations, noise)
    found = IntervalTables(config, 2)(deviations.log(), noise)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(expected[:, :, 1], torch.tensor([[1.5], [2.5]]).expand(2, 4))
    gaussian = IntervalTables({}, 2)(deviations.log(), noise)
    assert torch.equal(gaussian[1], torch.full((4, 2), 1.96))


def numpy_outputs(tensors):
    return {name: t.numpy() for name, t in zip(OUTPUTS, tensors, strict=False)}


@pytest.mark.filterwarnings("ignore::models.estimator.OpticsWarning")
@pytest.mark.parametrize("name", shipped_names())
def test_the_module_predicts_as_the_estimator(name, textures):
    estimator = load_estimator(name)
    optics = microscopes_across(estimator, len(textures))
    with torch.no_grad():
        found = numpy_outputs(PatchNetwork(estimator)(textures, cutoffs(optics)))
    expected, ranges = estimator.predict(textures, optics), estimator.config["label_ranges"]
    assert max(output_differences(found, expected, ranges).values()) < SAME
    moved = replace(expected, values=expected.values + 0.01)
    difference = output_differences(found, moved, ranges)["values"]
    assert difference == pytest.approx(0.01 / min(b - a for a, b in ranges), rel=0.02)


def test_only_gaussian_networks_ignore_the_cutoff(textures):
    for name, ignores in (("gaussian2d", True), ("zernike1d", False)):
        network = PatchNetwork(load_estimator(name))
        with torch.no_grad():
            values = [network(textures[1:], torch.full((5,), c))[0] for c in (0.45, 0.55)]
        assert torch.equal(*values) == ignores


@pytest.mark.filterwarnings("ignore::models.estimator.OpticsWarning")
@pytest.mark.parametrize(("planes", "places"), [(1, 1), (3, 4), (1, 300)])
def test_the_image_module_predicts_as_the_estimator(planes, places):
    estimator, generator = load_estimator("focus"), torch.Generator().manual_seed(1)
    features = 2 * torch.rand(planes, places, 256, generator=generator)
    facts = torch.rand(planes, places, 2, generator=generator)
    spots = 5 * torch.rand(places, 2, generator=generator)
    keys = spread_keys(planes * places, torch.device("cpu"))
    assert len(keys) == min(planes * places, 256)
    with torch.no_grad():
        found = numpy_outputs(ImageNetwork(estimator)(features, facts, spots, keys))
    expected = estimator.predict_together(features, facts, spots)
    ranges = estimator.config["label_ranges"]
    assert max(output_differences(found, expected, ranges).values()) < SAME


# --- what the export refuses


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_a_different_network_is_refused(wrong):
    right = {name: 0.9 * limit for name, limit in LIMITS.items()}
    refuse_different({"simulated": right})
    with pytest.raises(InputError, match=r"half_widths_95 .* PyTorch by .* \(simulated\)"):
        refuse_different({"simulated": right | {"half_widths_95": wrong}})


@pytest.mark.parametrize(
    ("format", "module", "package"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxruntime", "onnxruntime"),
        ("onnx", "onnxscript", "onnxscript"),
        ("bioimageio", "bioimageio.core", r"bioimageio\.core"),
    ],
)
def test_a_missing_package_gives_one_line(monkeypatch, capsys, tmp_path, format, module, package):
    pretend_installed(monkeypatch)
    monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "out"
    arguments = ["export_model.py", "zernike1d", "--format", format, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        command.run(export_model.Config, export_model.main, export_model.__doc__)
    message = rf"error: .* needs the package {package}: pip install -r requirements-export\.txt\n"
    assert end.value.code == 2
    assert re.fullmatch(message, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_network", "there is no checkpoint folder no_such_network; give"),
        ("checkpoints/restoration", r"checkpoints.restoration is no checkpoint"),
        ("docs", "docs is no checkpoint"),
    ],
)
def test_what_is_no_network_is_refused(monkeypatch, tmp_path, name, message):
    pretend_installed(monkeypatch)
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        export_model.main(export_model.Config(Path(name), out))
    assert not out.exists()


def test_a_wrong_place_is_refused(monkeypatch, tmp_path):
    pretend_installed(monkeypatch)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"--out .*file cannot be written"):
        export_model.main(export_model.Config(Path("zernike1d"), tmp_path / "file"))
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(InputError, match=r"holds model\.onnx, which is not listed"):
        export_model.main(export_model.Config(Path("zernike1d"), tmp_path))
    assert (tmp_path / "model.onnx").read_text() == "mine"


def pretend_installed(monkeypatch):
    """Let the packages of the export be found, as long as nothing of them is used."""
    for name in ("onnx", "onnxruntime", "onnxscript", "bioimageio", "bioimageio.spec"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


@pytest.mark.parametrize(
    "path", [ROOT / "export_model.py", *(ROOT / "export").glob("*.py")], ids=lambda path: path.name
)
def test_no_extra_is_imported_before_it_is_needed(path):
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert names or path.name == "__init__.py"
    extras = {"onnx", "onnxruntime", "onnxscript", "bioimageio", "loguru"}
    assert not extras & {name.split(".")[0] for name in names}


# --- what goes with an exported network


def test_cards_say_what_a_stranger_needs():
    text = card(load_estimator("astigmatic_tilted"), "model.onnx", with_context=False)
    assert "| focus | waves | -3 to 3 |" in text and "adds 1 wave of astigmatism" in text
    assert "b = ceil(0.425 / cutoff)" in text and "| na | 0.3 to 1.2 |" in text
    text = card(load_estimator("gaussian2d"), "model.onnx", with_context=False)
    assert "not used by this network" in text and "ceil" not in text
    text = card(load_estimator("focus"), "model.onnx", with_context=True)
    assert "## Images seen as a whole" in text and "no sign" in text
    assert "\n## Validation" in text  # a heading that BioImage.IO wants


def test_authors_come_from_the_citation_file(monkeypatch, tmp_path):
    assert bioimage.authors() == ["The authors of this repository"]
    lines = "title: x\nauthors:\n  - family-names: Doe\n    given-names: Jo A.\n  - name: Lab\n"
    (tmp_path / "CITATION.cff").write_text(lines + "preferred-citation:\n  authors:\n  - name: X\n")
    monkeypatch.setattr(bioimage, "CITATION", tmp_path / "CITATION.cff")
    assert bioimage.authors() == ["Jo A. Doe", "Lab"]


def test_the_cases_are_those_that_are_hard():
    estimator = load_estimator("zernike1d_tilted")
    found = {case.name: case for case in cases(estimator)}
    faint = found["tiny contrast"].patches
    contrast = faint.std((1, 2)) / faint.mean((1, 2))
    assert contrast[contrast > 0] == pytest.approx(1e-3, rel=0.01)
    assert found["16-bit counts"].patches.max() == COUNTS_16_BIT
    assert len(found["batch of 7"].patches) == 7 and len(found["batch of 1"].patches) == 1
    at = [float(case.cutoffs[0]) for name, case in found.items() if name.startswith("cut-off")]
    assert at == pytest.approx([0.425, 0.5125, 0.6])
