"""The microscope's derived quantities, refusals and the sampling warning."""

import math
import warnings

import pytest
import torch

from psf import InputError, Microscope
from psf.microscope import (
    OPTICS_NAMES,
    Optics,
    SamplingWarning,
    cutoff_cycles_per_pixel,
    cutoffs,
)

ROUNDING = 5e-4  # expected values below are written with four digits


def test_reference_optics_in_water():
    microscope = Microscope()
    assert microscope.cutoff_cycles_per_pixel == pytest.approx(0.5004, rel=ROUNDING)
    assert microscope.nyquist_pixel_um == pytest.approx(0.2778, rel=ROUNDING)
    assert microscope.depth_of_field_um == pytest.approx(3.284, rel=ROUNDING)
    assert microscope.um_per_wave == pytest.approx(6.568, rel=ROUNDING)


def test_one_wave_of_focus_is_less_depth_in_air():
    assert Microscope(refractive_index=1.0).um_per_wave == pytest.approx(4.938, rel=ROUNDING)


@pytest.mark.parametrize(
    ("change", "factor"),
    [({"na": 0.225}, 0.5), ({"wavelength_um": 1.0}, 0.5), ({"pixel_size_um": 0.139}, 0.5)],
)
def test_cutoff_is_proportional_to_na_and_pixel_and_falls_with_wavelength(change, factor):
    changed = Microscope(**change).cutoff_cycles_per_pixel
    assert changed == pytest.approx(factor * Microscope().cutoff_cycles_per_pixel, rel=1e-12)


def test_one_formula_gives_the_cutoff_of_numbers_tensors_and_microscopes():
    numbers = torch.tensor([0.45, 0.9]), torch.tensor([0.5, 0.6]), torch.tensor([0.278, 0.1])
    found = cutoff_cycles_per_pixel(*numbers)
    assert found.tolist() == pytest.approx([0.5004, 0.3])
    microscopes = [Microscope(), Microscope(0.9, 0.6, 0.1, 1.33)]
    assert cutoffs(microscopes).tolist() == pytest.approx(found.tolist())
    assert Optics.of(microscopes).cutoff_cycles_per_pixel.tolist() == pytest.approx(found.tolist())


def test_names_of_the_optics_keep_the_order_of_data_sets_on_disk():
    assert OPTICS_NAMES == ("na", "wavelength_um", "pixel_size_um", "refractive_index")


@pytest.mark.parametrize(("na", "index"), [(1.0, 1.0), (1.33, 1.33), (1.4, 1.33)])
def test_refuses_na_not_below_the_index(na, index):
    with pytest.raises(InputError, match="refractive index"):
        Microscope(na=na, refractive_index=index)


@pytest.mark.parametrize("field", OPTICS_NAMES)
@pytest.mark.parametrize("value", [0.0, -0.3, math.nan, math.inf])
def test_refuses_values_that_are_not_positive_and_finite_and_names_the_field(field, value):
    with pytest.raises(InputError, match=field):
        Microscope(**{field: value})


def test_warns_above_nyquist_and_names_the_limit():
    with pytest.warns(SamplingWarning, match=r"0\.278 um for NA 0\.45"):
        Microscope(pixel_size_um=0.35)


@pytest.mark.parametrize("pixel_size_um", [0.278, 0.1])
def test_is_silent_at_the_reference_optics_and_below(pixel_size_um):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Microscope(pixel_size_um=pixel_size_um)


def test_cutoffs_of_one_and_of_several_microscopes():
    fine = Microscope(pixel_size_um=0.139)
    assert cutoffs(Microscope(), dtype=torch.float64).tolist() == pytest.approx([0.5004])
    both = cutoffs([Microscope(), fine], dtype=torch.float64)
    assert both.tolist() == pytest.approx([0.5004, 0.2502])


def test_wavelength_typed_in_nanometres_is_told():
    with pytest.raises(InputError, match=r"500 nm are 0\.5 um"):
        Microscope(wavelength_um=500)


def test_pixel_size_typed_in_nanometres_is_told():
    with pytest.raises(InputError, match=r"pixel_size_um is 278; give it in um in object space"):
        Microscope(pixel_size_um=278)


def test_numbers_may_be_tensors_through_which_gradients_flow():
    na = torch.tensor(0.45, requires_grad=True)
    optics = Optics.of([Microscope(na=na), Microscope()])
    assert optics.cutoff_cycles_per_pixel.tolist() == pytest.approx([0.5004, 0.5004])
    optics.cutoff_cycles_per_pixel.sum().backward()
    assert float(na.grad) == pytest.approx(2 * 0.278 / 0.5)
    with pytest.raises(InputError, match="NA"):
        Microscope(na=1.4 * na / na)
