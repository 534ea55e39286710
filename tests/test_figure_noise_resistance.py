"""The figure of degradations: it draws what the tables hold and names a missing table."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

import figure_noise_resistance
from common.pictures import NETWORK_COLOURS
from figure_noise_resistance import Config, main
from models.degradations import DEGRADATIONS
from psf import InputError


def noise_table(networks=("ours", "rival"), degradations=DEGRADATIONS):
    rows = [
        {
            **{"network": network, "psf_model": "zernike1d", "parameter": "focus"},
            **{"degradation": d.name, "axis": d.axis, "unit": d.unit, "level": level},
            **{"patches": 9, "r2": 0.9 - 0.1 * n, "r2_low": 0.8 - 0.1 * n, "r2_high": 0.95},
        }
        for n, network in enumerate(networks)
        for d in degradations
        for level in d.levels[::6]
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def figures(monkeypatch):
    """Figures that would be written."""
    drawn = []
    monkeypatch.setattr(
        figure_noise_resistance, "save_figure", lambda path, figure: drawn.append(figure)
    )
    return drawn


def panels(figure):
    return {axes.get_title(): axes for axes in figure.findobj(Axes) if axes.get_title()}


def test_writes_png_and_pdf(tmp_path, capsys):
    noise_table().to_csv(tmp_path / "noise.csv", index=False)
    main(Config(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figure_noise_resistance.pdf",
        "figure_noise_resistance.png",
        "noise.csv",
    ]
    assert (tmp_path / "figure_noise_resistance.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "figure_noise_resistance.png") as image:
        assert image.width > 1000
        assert np.asarray(image.convert("L")).std() > 10
    assert capsys.readouterr().out.startswith("wrote ")


@pytest.mark.parametrize(
    ("columns", "over"), [({}, "patches"), ({"source_images": 4}, "source images")]
)
def test_title_says_what_the_intervals_are_over(tmp_path, figures, columns, over):
    noise_table().assign(**columns).to_csv(tmp_path / "noise.csv", index=False)
    main(Config(tmp_path))
    assert figures[0].get_suptitle() == (
        f"zernike1d: 9 test patches at each level, 95 % intervals over {over}"
    )


def test_lines_show_the_numbers_of_the_table(tmp_path, figures):
    table = noise_table()
    table.to_csv(tmp_path / "noise.csv", index=False)
    main(Config(tmp_path))
    drawn = panels(figures[0])
    assert list(drawn) == [d.name for d in DEGRADATIONS]
    for degradation in DEGRADATIONS:
        axes = drawn[degradation.name]
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines) == ["ours", "rival"]
        assert lines["ours"].get_xdata() == pytest.approx(degradation.levels[::6])
        assert lines["rival"].get_ydata() == pytest.approx([0.8] * 3)
        assert axes.get_xlabel() == f"{degradation.axis} ({degradation.unit})"
        # what harms grows to the right: photons and light fall
        falls = degradation.name in ("poisson", "both", "global illumination")
        assert axes.xaxis_inverted() == falls
        logarithmic = degradation.name in ("gaussian", "poisson", "both")
        assert axes.get_xscale() == ("log" if logarithmic else "linear")


def test_reference_is_drawn_where_there_is_one(tmp_path, figures):
    noise_table(("ours",)).to_csv(tmp_path / "noise.csv", index=False)
    reference = pd.DataFrame({"degradation": ["poisson"] * 2, "level": [3, 300], "r2": [0.5, 0.7]})
    reference.to_csv(tmp_path / "bayes_reference.csv", index=False)
    main(Config(tmp_path))
    drawn = panels(figures[0])
    assert len(drawn["poisson"].lines) == 2
    assert drawn["poisson"].lines[1].get_ydata().tolist() == [0.5, 0.7]
    assert len(drawn["rotation"].lines) == 1
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["ours", "Bayes-optimal, Gaussian textures"]


def test_rivals_are_drawn_in_their_colours_with_the_patches_they_have_seen(tmp_path, figures):
    noise_table(("zernike1d",)).assign(patches_seen=387_776).to_csv(tmp_path / "noise.csv")
    main(Config(tmp_path))
    rivals = noise_table(("resnet18",)).assign(patches_seen=163_840, r2=0.4)
    rivals.to_csv(tmp_path / "noise_rivals.csv")
    main(Config(tmp_path))
    alone, both = (panels(figure)["both"].lines for figure in figures[::2])
    assert [len(lines) for lines in (alone, both)] == [1, 2]
    assert both[1].get_ydata() == pytest.approx([0.4] * 3)
    assert [line.get_color() for line in both] == [
        NETWORK_COLOURS["zernike1d"],
        NETWORK_COLOURS["resnet18"],
    ]
    legend = [text.get_text() for text in figures[2].legends[0].get_texts()]
    assert legend == ["zernike1d (388,000 patches seen)", "resnet18 (164,000 patches seen)"]


def test_panels_of_photons_share_their_axis(tmp_path, figures):
    table = noise_table()
    table.loc[table["degradation"] == "both", "level"] *= 10
    table.to_csv(tmp_path / "noise.csv", index=False)
    main(Config(tmp_path))
    drawn = panels(figures[0])
    limits = drawn["poisson"].get_xlim()
    assert drawn["both"].get_xlim() == limits
    assert limits[0] > 300_000 and limits[1] < 3
    assert len({axes.get_ylim() for axes in drawn.values()}) == 1


def test_networks_of_another_psf_model_stay_away(tmp_path, figures):
    other = noise_table(("stranger",)).assign(psf_model="gaussian1d", parameter="fwhm")
    both = pd.concat([noise_table(("ours",)), other])
    both.to_csv(tmp_path / "noise.csv", index=False)
    main(Config(tmp_path))
    main(Config(tmp_path, "gaussian1d", "fwhm"))
    for figure, name in zip(figures[::2], ("ours", "stranger"), strict=True):
        labels = [line.get_label() for axes in panels(figure).values() for line in axes.lines]
        assert set(labels) == {name}


def test_missing_tables_and_rows_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no .*noise\.csv; make it with benchmark_models\.py"):
        main(Config(tmp_path))
    noise_table().to_csv(tmp_path / "noise.csv", index=False)
    with pytest.raises(InputError, match="no rows of zernike2d, ast_cos2"):
        main(Config(tmp_path, "zernike2d", "ast_cos2"))
    assert [path.name for path in tmp_path.iterdir()] == ["noise.csv"]
