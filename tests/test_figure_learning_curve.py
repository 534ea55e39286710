"""The learning curve: the fit recovers a known power law; unusable tables are refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import figure_learning_curve
from common.pictures import CONDITION_STYLES
from figure_learning_curve import patches_needed, power_law
from psf import InputError

SEEN = np.array([20_000, 80_000, 320_000])


def write_table(folder, rates):
    """benchmark.csv of three trainings, 1 - R^2 = 30 n^-rate for each condition."""
    rows = [
        {
            "psf_model": "zernike1d",
            "parameter": "focus",
            "images": images,
            "condition": condition,
            "patches_seen": n,
            "r2": 1 - 30 * n**-rate + shift,
            "r2_low": 0.9 - 30 * n**-rate,
            "r2_high": 1 - 20 * n**-rate,
        }
        for images, shift in (("all", 0.0), ("builtin", -0.01))
        for condition, rate in rates.items()
        for n in SEEN
    ]
    pd.DataFrame(rows).to_csv(folder / "benchmark.csv", index=False)


def test_power_law_is_found_again_and_inverted():
    log_a, exponent = power_law(SEEN, 1 - 30 * SEEN**-0.6)
    assert (np.exp(log_a), exponent) == (pytest.approx(30), pytest.approx(0.6))
    needed = patches_needed(log_a, exponent, 0.99)
    assert 30 * needed**-0.6 == pytest.approx(0.01)


def test_flat_curves_never_arrive():
    assert patches_needed(*power_law(SEEN, np.array([0.8, 0.8, 0.8])), 0.9) == np.inf


def test_picture_and_table_are_written(tmp_path):
    write_table(tmp_path, {"noise-free": 0.6, "100 photons": 0.5})
    figure_learning_curve.main(figure_learning_curve.Config(tmp_path))
    assert (tmp_path / "learning_curve.png").stat().st_size > 5000
    table = pd.read_csv(tmp_path / "learning_curve.csv").set_index("condition")
    assert table.loc["noise-free", "patches_for_0.98"] == pytest.approx(1500 ** (1 / 0.6), rel=1e-3)
    assert table.loc["100 photons", "r2_there"] == pytest.approx(1 - 30 * 320_000**-0.5, rel=1e-3)


def test_points_and_fits_have_the_colour_of_their_condition(tmp_path):
    write_table(tmp_path, {"noise-free": 0.6, "100 photons": 0.5})
    table = pd.read_csv(tmp_path / "benchmark.csv").query("images == 'all'")
    axes = Figure().subplots()
    figure_learning_curve.draw_panel(axes, table, "focus")
    points, lines = axes.lines[::4], axes.lines[3::4]  # points, two caps, the fit
    for point, line, condition, rate in zip(
        points, lines, ("noise-free", "100 photons"), (0.6, 0.5), strict=True
    ):
        assert point.get_color() == line.get_color() == CONDITION_STYLES[condition]["color"]
        np.testing.assert_allclose(point.get_ydata(), 30 * SEEN**-rate)
        np.testing.assert_allclose(line.get_ydata(), 30 * line.get_xdata() ** -rate)
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    assert all(float(label.get_text()) == pytest.approx(1 - at) for at, label in ticks)


def test_no_table_and_one_training_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"benchmark_models\.py"):
        figure_learning_curve.main(figure_learning_curve.Config(tmp_path))
    write_table(tmp_path, {"noise-free": 0.6})
    table = pd.read_csv(tmp_path / "benchmark.csv")
    table[table["patches_seen"] == SEEN[0]].to_csv(tmp_path / "benchmark.csv", index=False)
    with pytest.raises(InputError, match=r"fewer than two trainings .* images 'all'"):
        figure_learning_curve.main(figure_learning_curve.Config(tmp_path))
