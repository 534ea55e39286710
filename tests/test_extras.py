"""Optional packages that are missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.extras import needed
from psf import InputError

ROOT = Path(__file__).parents[1]
EXTRAS = {"napari", "qtpy", "dask", "distributed", "zarr", "nd2", "pylibCZIrw", "liffile"}
EXTRAS |= {"onnx", "onnxscript", "onnxruntime", "bioimageio", "tensorboard", "deepinv"}
EXTRAS |= {"mahotas", "stardist"}


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


def test_the_scripts_import_no_optional_package():
    """Importing all scripts, as their --help does, needs requirements.txt alone."""
    names = sorted(path.stem for path in ROOT.glob("*.py"))
    code = f"import sys, {', '.join(names)}; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    imported = {name.partition(".")[0] for name in run.stdout.split()}
    assert "torch" in imported and "viewer" not in imported
    assert not imported & EXTRAS
