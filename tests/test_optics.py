"""The optics of an image: flags before metadata, and a missing number is named."""

import pytest

from micrographs.metadata import OpticsFacts, flag_or_file, resolve_optics
from psf import InputError, Microscope

SOURCES = {"na": "OME-XML LensNA", "pixel_size_um": "ImageJ resolution"}
FACTS = OpticsFacts(na=0.5, pixel_size_um=0.25, z_step_um=0.4, sources=SOURCES)


def test_numbers_come_from_flags_and_else_from_the_file():
    flags = {"na": None, "wavelength_um": 0.52, "refractive_index": 1.33}
    found = resolve_optics(flags, FACTS)
    assert found.microscope == Microscope(0.5, 0.52, 0.25, 1.33)
    assert found.sources["na"] == "OME-XML LensNA"
    assert found.sources["wavelength_um"] == "--wavelength-um"
    assert found.notes == (
        "na is 0.5, from the file (OME-XML LensNA)",
        "pixel_size_um is 0.25, from the file (ImageJ resolution)",
    )


def test_flags_win_and_say_so():
    flags = {"na": 0.45, "wavelength_um": 0.5, "refractive_index": 1.33, "pixel_size_um": 0.2501}
    found = resolve_optics(flags, FACTS)
    assert found.microscope.na == 0.45
    assert found.notes == ("--na 0.45 overrules 0.5 of the file (OME-XML LensNA)",)


def test_missing_numbers_are_named_as_flags():
    with pytest.raises(InputError, match="give --wavelength-um, --refractive-index"):
        resolve_optics({}, FACTS)


def test_numbers_that_do_not_matter_may_be_missing():
    found = resolve_optics({}, FACTS, {"wavelength_um": 0.5, "refractive_index": 1.33})
    assert found.sources["refractive_index"] == "not needed"


@pytest.mark.parametrize(("step", "notes"), [(0.4, 0), (-0.4, 0), (0.5, 1), (-0.5, 1)])
def test_sign_of_a_step_is_a_direction_and_no_contradiction(step, notes):
    told = []
    assert flag_or_file("z_step_um", step, FACTS, told) == (step, "--z-step-um")
    assert len(told) == notes
