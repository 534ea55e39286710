"""Maps: every prediction lands at the place of its patch."""

import math
from dataclasses import replace

import pytest
import torch

from models import done_rows
from models.estimator import Prediction
from models.mapping import TensorImage, predict_map
from psf import InputError, Microscope, PsfModel


class PlaceReader:
    """Stands in for an estimator: reads the place of a patch off an image of coordinates."""

    patch_size = 16
    device = torch.device("cpu")
    fingerprint, context = "place reader", None
    psf_model = PsfModel("gaussian2d", {"row": (0.0, 90.0), "column": (0.0, 230.0)}, "px")

    def predict(self, patches, microscope, batch_size):
        coded = patches[:, 0, 0]  # first pixel: 1000 y + x of the corner
        places = torch.stack([coded // 1000, coded % 1000], 1)
        means = patches.mean((1, 2))
        return Prediction(("row", "column"), "px", places, -places, -2 * places, means)


def coordinates(height, width):
    return 1000.0 * torch.arange(height)[:, None] + torch.arange(width)


@pytest.fixture(scope="module")
def place_map():
    return predict_map(PlaceReader(), coordinates(90, 61), Microscope(), stride=7)


def test_rows_and_columns_of_the_map_are_those_of_the_image(place_map):
    assert place_map.values.shape == (2, 11, 7)  # (90 - 16) // 7 + 1, (61 - 16) // 7 + 1
    rows, columns = torch.arange(11) * 7.0, torch.arange(7) * 7.0
    assert torch.equal(place_map.values[0], rows[:, None].expand(11, 7))
    assert torch.equal(place_map.values[1], columns.expand(11, 7))
    assert torch.equal(place_map.standard_deviations, -place_map.values)


def test_centres_are_the_middles_of_the_patches(place_map):
    # pixels 0 .. 15 have their middle at 7.5; a mean over a patch of coordinates is its centre
    assert place_map.rows.tolist() == pytest.approx([7.5 + 7 * i for i in range(11)])
    assert place_map.columns.tolist() == pytest.approx([7.5 + 7 * i for i in range(7)])
    expected = 1000 * place_map.rows[:, None] + place_map.columns
    assert torch.allclose(place_map.content, expected, rtol=1e-6)


def test_last_patch_ends_inside_of_the_image(place_map):
    for centres, length in ((place_map.rows, 90), (place_map.columns, 61)):
        end = float(centres[-1]) + 8 - 0.5
        assert end <= length - 1 < end + 7


def test_map_names_its_parameters_and_carries_its_error_bars(place_map):
    assert (place_map.names, place_map.unit) == (("row", "column"), "px")
    assert torch.equal(place_map.half_widths_95, -2 * place_map.values)
    assert place_map.has_content.sum() == (place_map.content >= 0.5).sum()


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (31, 16)])
def test_image_of_one_patch_across_gives_one_row_or_column(shape):
    found = predict_map(PlaceReader(), coordinates(*shape), Microscope(), stride=16)
    assert found.values.shape[1:] == (shape[0] // 16, shape[1] // 16)
    assert found.rows[0] == found.columns[0] == 7.5


def test_more_patches_than_a_batch_keep_their_order():
    found = predict_map(PlaceReader(), coordinates(40, 50), Microscope(), stride=1)
    assert torch.equal(found.values[0], torch.arange(25.0)[:, None].expand(25, 35))
    assert torch.equal(found.values[1], torch.arange(35.0).expand(25, 35))


@pytest.mark.parametrize(
    ("image", "stride", "message"),
    [
        (torch.rand(15, 40), 4, "15 x 40 px, less than one patch of 16 px"),
        (torch.rand(40, 15), 4, "40 x 15 px, less than one patch of 16 px"),
        (torch.full((40, 40), 3.5), 4, "all pixels of the image are 3.5"),
        (torch.rand(40, 40).index_put((torch.tensor(3),), torch.tensor(math.nan)), 4, "NaN"),
        (torch.rand(40, 40).index_put((torch.tensor(3),), torch.tensor(math.inf)), 4, "infinite"),
        (torch.rand(40, 40), 0, "stride is 0"),
        (torch.rand(40, 40), -3, "stride is -3"),
    ],
)
def test_images_that_cannot_be_mapped(image, stride, message):
    with pytest.raises(InputError, match=message):
        predict_map(PlaceReader(), image, Microscope(), stride)


def test_brightness_is_the_mean_of_each_patch(place_map):
    expected = 1000 * place_map.rows[:, None] + place_map.columns
    assert torch.allclose(place_map.brightness, expected, rtol=1e-6)


class Killed(BaseException):
    """What a kill looks like from the inside."""


class CountingImage(TensorImage):
    """Counts the reads, and dies at the third one if asked to."""

    reads = 0
    mortal = False

    def rows(self, start, stop):
        type(self).reads += 1
        if self.mortal and self.reads == 3:
            raise Killed
        return super().rows(start, stop)


def test_killed_map_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(done_rows, "BAND", 60)  # two rows of the map at a time
    image, partial = CountingImage(coordinates(90, 230)), tmp_path / "partial.f32"
    expected = predict_map(PlaceReader(), image, Microscope(), 7)
    reads, CountingImage.reads, CountingImage.mortal = CountingImage.reads, 0, True
    with pytest.raises(Killed):
        predict_map(PlaceReader(), image, Microscope(), 7, partial, {"image": "a"})
    with partial.open("ab") as file:
        file.write(b"half a row")
    CountingImage.reads, CountingImage.mortal = 0, False
    found = predict_map(PlaceReader(), image, Microscope(), 7, partial, {"image": "a"})
    assert CountingImage.reads == reads - 2
    for name in ("values", "standard_deviations", "half_widths_95", "content", "brightness"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.names == expected.names
    # once more, and nothing is left to do; with another key all is done anew
    CountingImage.reads = 0
    predict_map(PlaceReader(), image, Microscope(), 7, partial, {"image": "a"})
    assert CountingImage.reads == 0
    predict_map(PlaceReader(), image, Microscope(), 7, partial, {"image": "b"})
    assert CountingImage.reads == reads


class OtherReader(PlaceReader):
    """Another network in a folder of the same name."""

    fingerprint = "other reader"

    def predict(self, patches, microscope, batch_size):
        found = super().predict(patches, microscope, batch_size)
        return replace(found, values=found.values + 1)


@pytest.mark.parametrize("change", ["network", "optics", "stride"])
def test_killed_map_of_another_network_or_optics_is_made_anew(tmp_path, monkeypatch, change):
    monkeypatch.setattr(done_rows, "BAND", 60)
    image, partial = CountingImage(coordinates(90, 230)), tmp_path / "partial.f32"
    CountingImage.reads, CountingImage.mortal = 0, True
    with pytest.raises(Killed):
        predict_map(PlaceReader(), image, Microscope(), 7, partial, {"image": "a"})
    CountingImage.reads, CountingImage.mortal = 0, False
    reader = OtherReader() if change == "network" else PlaceReader()
    optics = Microscope(na=0.4) if change == "optics" else Microscope()
    stride = 9 if change == "stride" else 7
    expected = predict_map(reader, image, optics, stride)
    found = predict_map(reader, image, optics, stride, partial, {"image": "a"})
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.rows, expected.rows)
