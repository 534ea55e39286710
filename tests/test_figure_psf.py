"""The figure of the PSF models: its numbers, its titles and its files."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image

import figure_psf
from common.command import run
from common.gallery import OTF_FLOOR, draw_gallery
from psf import MODEL_NAMES, InputError, Layers, Microscope
from psf.light import ScalarWarning

OIL = figure_psf.Config(
    microscope=Microscope(1.3, 0.6, 0.1, 1.33),
    layers=Layers(n_immersion=1.515),
    depth_um=10.0,
    light="vectorial",
)
SAME = 1e-4  # of the peak: PSFs are in float32


@pytest.fixture(scope="module")
def gallery():
    return figure_psf.build_gallery(figure_psf.Config())


@pytest.fixture(scope="module")
def figure(gallery):
    return draw_gallery(gallery)


def titled(figure):
    return [at for at in figure.findobj(Axes) if at.get_title()]


def difference(first, second):
    return np.abs(first - second).max() / max(first.max(), second.max())


def test_every_model_has_a_picture(gallery):
    assert [picture.title.split("\n")[0] for picture in gallery.models] == list(MODEL_NAMES)


def test_titles_and_axes_carry_units(figure):
    axes = titled(figure)
    assert len(axes) == 7 + 7 + 4 + 6
    titles = [at.get_title() for at in axes]
    assert all(any(u in t for u in (" px", " µm", " waves")) for t in titles[:14]), titles
    for at in axes[14:18]:
        assert "(µm)" in at.get_xlabel() and "(µm)" in at.get_ylabel()
    for at in axes[18:]:
        assert "(cycles/µm)" in at.get_xlabel()


def test_pictures_have_scale_bars_in_um(figure):
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert sum(text in ("2 µm", "5 µm") for text in texts) == 14


def test_texts_do_not_overlap(figure):
    figure.draw_without_rendering()
    boxes = [at.title.get_window_extent() for at in titled(figure)]
    boxes += [text.get_window_extent() for part in figure.subfigs for text in part.texts]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])


def test_only_a_mismatch_makes_defocus_asymmetric(gallery):
    matched = [picture.psf for picture in gallery.defocus]
    assert difference(matched[0], matched[-1]) < SAME
    assert difference(matched[1], matched[-2]) < SAME
    pictures, _ = figure_psf.defocus_pictures(OIL)
    assert difference(pictures[1].psf, pictures[-2].psf) > 0.5


def test_light_bends_towards_the_objective_under_oil():
    plain, deep, _, _ = figure_psf.section_row(OIL)
    z_um = np.linspace(*plain.z_um, len(plain.psf))
    assert z_um[plain.psf.max(1).argmax()] == pytest.approx(0, abs=1e-6)
    assert z_um[deep.psf.max(1).argmax()] < -OIL.microscope.depth_of_field_um
    assert deep.psf.max() < 0.6 * plain.psf.max()


def test_astigmatism_turns_by_90_degrees_through_focus(gallery):
    along_x, along_y = (section.psf for section in gallery.sections[2:])
    assert difference(along_x, along_y[::-1]) < SAME
    assert difference(along_x, along_y) > 0.1


def test_sign_of_the_otf(gallery):
    focus, one, two = gallery.transfers
    frequency = np.linspace(-focus.highest, focus.highest, len(focus.otf))
    radius = np.hypot(frequency[:, None], frequency) / focus.cutoff
    assert focus.cutoff == pytest.approx(2 * 0.45 / 0.5)
    assert (focus.otf[radius < 0.95] > OTF_FLOOR).all()
    assert (one.otf < -OTF_FLOOR).any() and (two.otf < -OTF_FLOOR).any()
    for transfer in gallery.transfers:
        assert np.abs(transfer.otf[radius > 1.02]).max() < OTF_FLOOR
    # closed form of the clear circular pupil in focus
    half = np.arccos(radius.clip(max=1))
    ideal = 2 / np.pi * (half - np.cos(half) * np.sin(half))
    assert np.abs(focus.otf - ideal).max() < 0.01  # the grid holds 99 % of the light


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_file_is_written_whole(tmp_path, suffix, start, capsys):
    out = tmp_path / "new" / f"figure{suffix}"
    figure_psf.main(figure_psf.Config(out=out))
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.read_bytes().startswith(start) and out.stat().st_size < 1e6
    assert capsys.readouterr().out == f"wrote {out}\n"
    if suffix == ".png":
        with Image.open(out) as image:
            image.load()
            assert 1500 < image.width < 1700


def test_bad_input_is_refused(tmp_path):
    config = figure_psf.Config(out=tmp_path / "figure.png")
    with pytest.raises(InputError, match=r"\.png or \.pdf"):
        figure_psf.main(replace(config, out=tmp_path / "figure.svg"))
    with pytest.raises(InputError, match=r"NA 0\.45 is not below n_immersion 0\.4"):
        figure_psf.main(replace(config, layers=Layers(n_immersion=0.4)))
    with pytest.raises(InputError, match="depth_um is -1"):
        figure_psf.main(replace(config, depth_um=-1.0))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        figure_psf.main(replace(config, out=tmp_path / "file" / "figure.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_mistakes_end_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `run` changes it
    monkeypatch.setattr(sys, "argv", ["figure_psf.py", "--out", "figure.tif"])
    with pytest.raises(SystemExit) as end:
        run(figure_psf.Config, figure_psf.main, figure_psf.__doc__)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --out is figure.tif; give a name that ends in .png or .pdf."
    ]
    assert not Path("figure.tif").exists()


def test_scalar_light_at_high_na_is_warned_of(tmp_path):
    with pytest.raises(ScalarWarning, match="vectorial"):  # pytest raises what a user reads
        figure_psf.main(replace(OIL, light="scalar", out=tmp_path / "figure.png"))
