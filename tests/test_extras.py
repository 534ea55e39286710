"""Optional packages that are missing."""

import sys

import pytest

from common.extras import needed
from psf import InputError


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy.missing", None)
    with pytest.raises(InputError) as error:
        needed("numpy.missing", "--option", "requirements-some.txt")
    assert str(error.value) == (
        "--option needs the package numpy: pip install -r requirements-some.txt"
    )
    with pytest.raises(InputError, match=r"package numpy-missing: .*\.txt, or save it as TIFF$"):
        needed("numpy.missing", "a.b", "some.txt", "save it as TIFF", package="numpy-missing")


def test_a_package_that_is_there_is_imported():
    assert (
        needed("json.decoder", "--option", "requirements-some.txt") is sys.modules["json.decoder"]
    )
