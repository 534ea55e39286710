"""The table of images with context: its scenes, its readings and its scores."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from benchmarks import image_scores, images
from benchmarks.image_scores import Pooled, content_rows, focus_rows, gain_interval, pooled
from benchmarks.images import Cell, NamingBank, read_image, scene, specimens_of, to_refuse
from models.context import ContextNet
from models.context_training import image_sources
from models.data import read_data_config
from models.estimator import Estimator
from models.loss import output_count
from models.networks import build
from psf.errors import InputError
from psf.microscope import Microscope, simulated_microscopes
from psf.model import psf_model
from simulation.patches import OUT_OF_RANGE
from simulation.settings import OpticsRanges, Simulation, optics_limits
from simulation.specimens import SpecimenRanges

SIMULATION = Simulation(
    model=psf_model("zernike1d", {"focus": (0.0, 1.0)}),
    microscope=Microscope(0.5, 0.6, 0.3, 1.33),
    optics_ranges=OpticsRanges(na=(0.35, 0.55)),
    patch_size=64,
    psf_size=63,
    blank_fraction=0.0,
    specimens=SpecimenRanges(plain=0.4, soft=0.35, hazy=0.2, background=0.4, haze_only=0.1),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data folder without patches; its source images are random squares, two in the test split."""
    folder = tmp_path_factory.mktemp("data")
    rng, objects = np.random.default_rng(0), folder / "objects"
    objects.mkdir()
    names = {"train": ["a.tif"], "validation": ["b.tif"], "test": ["c.tif", "d.tif"]}
    for name in (name for some in names.values() for name in some):
        squares = np.kron(rng.random((30, 30)), np.ones((10, 10)))
        tifffile.imwrite(objects / name, np.float32(squares))
    settings = {n: getattr(SIMULATION, n) for n in ("patch_size", "psf_size", "blank_fraction")}
    config = settings | {
        "kind": "training set",
        "psf_model": SIMULATION.model.as_config(),
        "microscope": asdict(SIMULATION.microscope),
        "optics_ranges": asdict(SIMULATION.optics_ranges),
        "specimens": asdict(SIMULATION.specimens),
        "patches_per_crop": 1,
        "seed": 1,
        "images": str(objects),
        "source_images": names,
        "source_hashes": {},  # of the training images alone
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def bank(data):
    sources = image_sources(data, read_data_config(data), SIMULATION.crop_size, "test")
    assert [source.name for source in sources] == ["c.tif", "d.tif"]
    return NamingBank(sources, SIMULATION.crop_size, SIMULATION.patch_size)


@pytest.fixture(scope="module")
def estimator():
    """A network with random weights, and a context that changes its outputs."""
    torch.manual_seed(0)
    model, outputs = SIMULATION.model, output_count(1)
    context = ContextNet(outputs)
    torch.nn.init.normal_(context.leave[1].weight, std=0.1)
    config = {
        "psf_model": model.as_config(),
        "label_names": model.label_names,
        "label_ranges": model.label_ranges,
        "label_unit": model.unit,
        "patch_size": 64,
        "optics_limits": optics_limits(replace(SIMULATION, optics_ranges=OpticsRanges())),
        "context": {},
    }
    network = build("spectral_resnet", outputs).eval()
    return Estimator(network, config, torch.device("cpu"), "", context.eval())


def test_specimens_are_as_soft_as_the_table_says():
    ranges, cell = SIMULATION.specimens, Cell("varied", "soft and hazy")
    rng = np.random.default_rng(0)
    drawn = [specimens_of(cell, ranges, rng) for _ in range(500)]
    softness = np.array([softness_px for _, softness_px in drawn])
    assert np.mean(softness > 0) == pytest.approx(0.6, abs=0.07)  # 3 standard errors
    low, high = ranges.softness_px
    assert ((softness == 0) | ((softness >= low) & (softness <= high))).all()
    for specimens, softness_px in drawn:
        assert (specimens.plain, specimens.thick, specimens.hazy) == (0, 0.6, 0.6)
        assert specimens.soft == (softness_px > 0)
        assert specimens.softness_px == (softness_px, softness_px)
    assert specimens_of(Cell("varied", "sharp"), ranges, rng) == (SpecimenRanges(), 0.0)


@pytest.mark.parametrize("optics", ["reference", "varied"])
def test_half_of_an_image_is_out_of_range_and_should_be_refused(bank, optics):
    cell = Cell(optics, "out of range", 1, 12)
    drawn = [scene(cell, SIMULATION, bank, [3, number]) for number in range(3)]
    assert {one.source for one in drawn} <= {"c.tif", "d.tif"}
    patches = pooled(drawn, [{"alone": np.zeros((4, 12))}] * 3)
    refused = to_refuse(cell, patches, SIMULATION)
    low, high = OUT_OF_RANGE  # of a range that ends at 1 wave
    assert ((patches.truth[refused] >= low) & (patches.truth[refused] <= high)).all()
    assert ((patches.truth[~refused] >= 0) & (patches.truth[~refused] <= 1)).all()
    assert 9 <= refused.sum() <= 27  # 18 expected, 3 standard deviations
    assert not patches.has_content[refused].any()
    na = float(drawn[0].images.optics[0, 0])
    assert (na == pytest.approx(0.45)) == (optics == "reference")


def test_blank_images_have_hardly_any_contrast(bank):
    images = scene(Cell("reference", "blank"), SIMULATION, bank, [0]).images
    contrast = images.blurred.std((-2, -1)) / images.blurred.mean((-2, -1))
    assert images.blurred.shape[:3] == (1, 1, 25)
    assert float(contrast.max()) < 0.03
    assert not images.has_content.any()


def test_haze_is_counted_where_the_focus_is_in_range():
    truth, content = np.array([0.5, 0.5, 1.3]), np.array([True, False, False])
    patches = Pooled(truth, content, np.array(["a"] * 3), np.zeros(3), {})
    for cell, expected in (("only haze", [0, 1, 0]), ("out of range", [0, 0, 1])):
        assert to_refuse(Cell("varied", cell), patches, SIMULATION).tolist() == expected


def test_each_way_of_reading_sees_what_it_should(bank, estimator):
    images = scene(Cell("varied", "sharp", 2, 3), SIMULATION, bank, [5]).images
    found = read_image(estimator, images, images.blurred)
    (microscope,) = simulated_microscopes(images.optics.tolist())
    single = estimator.predict(images.blurred.flatten(0, 2), microscope)
    np.testing.assert_allclose(found["alone"][0], single.values[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["alone"][1], single.standard_deviations[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["alone"][3], single.content_probability, atol=1e-5)
    # another second plane changes the first one in the stack, but not in its image
    changed = images.blurred.clone()
    changed[:, 1] = changed[:, 1].flip(-1) ** 2
    other = read_image(estimator, images, changed)
    first = slice(0, 3)
    np.testing.assert_allclose(other["image"][:, first], found["image"][:, first], atol=1e-5)
    assert np.abs(other["stack"][0, first] - found["stack"][0, first]).min() > 1e-4
    assert np.abs(found["image"][0] - found["alone"][0]).min() > 1e-4


def known_errors(rng: np.random.Generator, sources: int, each: int) -> Pooled:
    """Patches whose errors have the standard deviations 0.4 (alone) and 0.2 (image)."""
    truth = rng.uniform(0, 4, sources * each)
    readings = {
        name: np.stack([truth + rng.normal(0, s, truth.shape), s + 0 * truth, 1.96 * s + 0 * truth])
        for name, s in (("alone", 0.4), ("image", 0.2))
    }
    content = (np.arange(len(truth)) % 4 > 0)[None]  # three quarters of them
    readings = {name: np.concatenate([values, content]) for name, values in readings.items()}
    names = np.repeat([f"source {number}" for number in range(sources)], each)
    softness = np.repeat(np.arange(sources) % 3 * 0.8, each)  # 0, 0.8, 1.6 px
    return Pooled(truth, np.ones(len(truth), bool), names, softness, readings)


def test_scores_of_known_errors():
    rows = list(focus_rows(known_errors(np.random.default_rng(1), 30, 100), (0.3, 2.0)))
    alone, image = rows[:2]
    variance = 16 / 12  # of focus, uniform from 0 to 4
    for row, error in ((alone, 0.4), (image, 0.2)):
        assert row["r2"] == pytest.approx(1 - error**2 / variance, abs=0.01)
        assert row["rmse_waves"] == pytest.approx(error, rel=0.05)
        assert row["coverage_68"] == pytest.approx(0.683, abs=0.03)
        assert row["coverage_95"] == pytest.approx(0.95, abs=0.015)
        assert row["called_content"] == 0.75
    assert (alone["gain"], alone["gain_low"], alone["gain_high"]) == (0, 0, 0)
    expected = (0.4**2 - 0.2**2) / variance
    assert 0 < image["gain_low"] < expected < image["gain_high"] < 2 * expected
    assert [row["softness_px"] for row in rows[::2]] == ["all", "0", "up to 1.1", "above 1.1"]
    assert [row["patches"] for row in rows[::2]] == [3000, 1000, 1000, 1000]


def test_gain_interval_is_that_of_drawn_source_images():
    patches = known_errors(np.random.default_rng(2), 6, 8)
    truth, sources = patches.truth, patches.sources
    alone, image = (patches.readings[name][0] for name in ("alone", "image"))
    names, rng = np.unique(sources), np.random.default_rng(image_scores.BOOTSTRAP_SEED)
    gains = []
    for draw in rng.integers(6, size=(image_scores.REPETITIONS, 6)):
        rows = np.concatenate([np.flatnonzero(sources == names[number]) for number in draw])
        fall = (alone[rows] - truth[rows]) ** 2 - (image[rows] - truth[rows]) ** 2
        gains.append(fall.mean() / truth[rows].var())
    expected = np.percentile(gains, (2.5, 97.5))
    assert gain_interval(truth, alone, image, sources) == pytest.approx(expected, abs=1e-9)
    assert np.isnan(gain_interval(truth, alone, image, np.zeros(len(truth)))).all()


def test_refused_patches_are_counted():
    patches = known_errors(np.random.default_rng(3), 2, 10)
    (alone, _) = content_rows(patches)
    assert (alone["called_content"], alone["patches"], alone["source_images"]) == (0.75, 20, 2)
    none = patches.take(np.zeros(20, bool))
    assert all(np.isnan(row["called_content"]) for row in content_rows(none))


def random_readings(shape: torch.Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    names = ("alone", "image") + ("stack",) * (shape[1] > 1)
    return {name: rng.random((4, shape[1] * shape[2])) for name in names}


def test_table_goes_on_with_missing_cells(data, estimator, tmp_path, monkeypatch):
    cells = [Cell("varied", "soft and hazy", 1, 3), Cell("reference", "blank")]
    cells.append(Cell("reference", "sharp", 2, 2))
    rng = np.random.default_rng(0)
    monkeypatch.setattr(images, "load_estimator", lambda *_: estimator)
    monkeypatch.setattr(images, "read_image", lambda *a: random_readings(a[2].shape, rng))
    monkeypatch.setattr(images, "PHOTONS", (float("inf"), 100.0))
    monkeypatch.setattr(images, "CELLS", cells[:2])
    config = images.Config(Path("net"), data, images=2, stacks=1, device="cpu", out=tmp_path)
    images.main(config)
    first = pd.read_csv(tmp_path / "images.csv")
    assert set(first["photons_per_px"]) == {np.inf, 100.0}
    drawn, draw = [], images.scene
    monkeypatch.setattr(images, "scene", lambda cell, *a: drawn.append(cell) or draw(cell, *a))
    monkeypatch.setattr(images, "CELLS", cells)
    images.main(config)
    assert drawn == cells[2:]
    second = pd.read_csv(tmp_path / "images.csv")
    pd.testing.assert_frame_equal(second[: len(first)][first.columns], first)
    text = (tmp_path / "images.md").read_text("utf-8")
    assert "| varied | soft and hazy | 100 | " in text
    assert "| reference | blank | none | 50 | " in text
    gaussian = psf_model("gaussian1d").as_config()
    wrong = replace(estimator, config={**estimator.config, "psf_model": gaussian})
    monkeypatch.setattr(images, "load_estimator", lambda *_: wrong)
    with pytest.raises(InputError, match="give a network of zernike1d"):
        images.main(config)
