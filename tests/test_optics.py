"""The optics of an image: flags before metadata, and a missing number is named."""

import pytest

from micrographs.metadata import resolve_optics
from psf import InputError, Microscope

READ = {"na": 0.5, "pixel_size_um": 0.25}
FROM = {"na": "OME-XML LensNA", "pixel_size_um": "ImageJ resolution"}


def test_numbers_come_from_flags_and_else_from_the_file():
    flags = {"na": None, "wavelength_um": 0.52, "refractive_index": 1.33}
    found = resolve_optics(flags, READ, FROM)
    assert found.microscope == Microscope(0.5, 0.52, 0.25, 1.33)
    assert found.sources["na"] == "OME-XML LensNA"
    assert found.sources["wavelength_um"] == "--wavelength-um"
    assert found.notes == ()


def test_flags_win_and_say_so():
    flags = {"na": 0.45, "wavelength_um": 0.5, "refractive_index": 1.33, "pixel_size_um": 0.2501}
    found = resolve_optics(flags, READ, FROM)
    assert found.microscope.na == 0.45
    assert found.notes == ("--na 0.45 overrules 0.5 of the file (OME-XML LensNA)",)


def test_missing_numbers_are_named_as_flags():
    with pytest.raises(InputError, match="give --wavelength-um, --refractive-index"):
        resolve_optics({}, READ, FROM)


def test_numbers_that_do_not_matter_may_be_missing():
    found = resolve_optics({}, READ, FROM, {"wavelength_um": 0.5, "refractive_index": 1.33})
    assert found.sources["refractive_index"] == "not needed"
