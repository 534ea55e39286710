"""benchmarks/real_stacks.py: the truth of a stack, its scores, and the files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy.stats import spearmanr

from benchmarks import real_stacks, stack_scores
from benchmarks.stack_scores import (
    called_content,
    intervals,
    mean_rows,
    score,
    score_stack,
    tile_ranks,
)
from benchmarks.stack_tables import binned, draw, markdown
from benchmarks.stack_truth import TileFocus, find_stacks, sharpness, tile_focus
from models.estimator import Estimator
from models.mapping import PsfMap
from models.recording import Recording
from psf.blur import blur_valid
from psf.errors import InputError
from psf.microscope import Microscope
from psf.noise import camera_counts
from psf.synthesis import synthesize

OPTICS = {"na": 0.45, "wavelength_um": 0.5, "refractive_index": 1.33, "pixel_size_um": 0.278}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(stack_scores, "DRAWS", 40)  # quick; intervals get a little less exact


def write_stack(folder: Path, name: str, planes: np.ndarray, truth: dict) -> None:
    tifffile.imwrite(folder / f"{name}_stack.tif", planes, photometric="minisblack")
    (folder / f"{name}_truth.json").write_text(json.dumps(truth))


# --- truth


def test_sharpness_is_the_variance_of_a_band_of_frequencies():
    f = 1 / 8  # cycles per px, whole periods in a tile
    image = torch.cos(2 * np.pi * f * torch.arange(192)).expand(128, -1).clone()
    image[:, 128:] = 0  # the right third has no detail
    found = sharpness(100 + image, 64, 64)
    fine, coarse = (np.exp(-2 * (np.pi * f * width) ** 2) for width in (1.2, 2.4))
    assert found.shape == (2, 2, 3)
    expected = [(fine - coarse) ** 2 / 2] * 4
    assert found[:, :, 0].flatten().tolist() == pytest.approx(expected, rel=0.05)
    assert float(found[:, :, 2].max()) < 0.05 * expected[0]
    assert sharpness(100 + image, 64, 32)[:, ::2, ::2] == pytest.approx(found)


@pytest.mark.parametrize(("place", "centred"), [(0, 0.0), (32, 4.0), (16, 2.0)])
def test_detail_in_the_middle_is_told_from_detail_at_the_edge(place, centred):
    image = torch.full((64, 64), 5.0)
    image[32, place] = 100
    sharp = sharpness(image, 64, 64).reshape(2, 1, 1).numpy() * np.array([0.0, 0, 1, 0, 0])[:, None]
    assert tile_focus(sharp, np.arange(5)).centred == pytest.approx([centred], abs=0.2)


def focus_of(sharp: np.ndarray, z: np.ndarray) -> TileFocus:
    """Focus of tiles whose detail is spread evenly."""
    return tile_focus(np.stack([sharp, sharp]), z)


def test_the_focus_is_found_between_planes_and_beside_a_floor():
    z, noise = np.linspace(-2, 2, 21), np.random.default_rng(0).normal(0, 0.02, (21, 3))
    true = np.array([0.07, -0.63, 1.24])
    sharp = 3 + 10 * np.exp(-0.5 * ((z[:, None] - true) / 0.5) ** 2) + noise
    assert focus_of(sharp, z).z == pytest.approx(true, abs=0.01)
    shuffled = np.random.default_rng(1).permutation(21)
    assert focus_of(sharp[shuffled], z[shuffled]).z == pytest.approx(true, abs=0.01)
    assert focus_of(sharp, z).contrast == pytest.approx([13 / 3] * 3, rel=0.02)


def test_unequal_steps_leave_the_focus_of_a_parabola_where_it_is():
    z = np.array([-5.0, -3.0, -0.5, 0.2, 4.0, 9.0])
    sharp = 40 - (z[:, None] - 0.9) ** 2
    assert focus_of(sharp, z).z == pytest.approx([0.9])


def test_a_noisy_plane_close_to_the_best_one_does_not_move_the_focus_far():
    z = np.array([-24.0, -9.6, 0.0, 0.55, 10.3, 25.5])  # the steps of a stack made by hand
    sharp = np.exp(-0.5 * ((z[:, None] - np.array([0.5, -0.5])) / 6) ** 2)
    sharp[2, 0] *= 0.9
    sharp[3, 1] *= 0.9
    assert focus_of(sharp, z).z == pytest.approx([0.5, -0.5], abs=0.6)


@pytest.mark.parametrize(
    ("centre", "height", "is_known"),
    [(0, 10, True), (-2.1, 10, False), (2, 10, False), (0, 1, False)],
)
def test_only_peaks_inside_the_stack_and_above_the_floor_count(centre, height, is_known):
    z = np.linspace(-2, 2, 21)
    sharp = 3 + height * np.exp(-0.5 * ((z[:, None] - centre) / 0.5) ** 2)
    assert np.isfinite(focus_of(sharp, z).z).tolist() == [is_known]


def test_noise_alone_has_no_focus():
    planes = torch.randn(30, 384, 384, generator=torch.Generator().manual_seed(0)) + 50
    sharp = np.stack([sharpness(plane, 128, 128)[0].numpy().ravel() for plane in planes])
    found = focus_of(sharp, np.arange(30))
    assert np.isnan(found.z).all()
    assert (found.contrast < 1.4).all()


def test_tiles_without_light_have_no_focus():
    found = focus_of(np.zeros((5, 2)), np.arange(5))
    assert np.isnan(found.z).all()
    assert found.contrast.tolist() == [1, 1]


# --- files


def test_names_z_and_optics_of_stacks(tmp_path):
    planes = np.zeros((3, 8, 8), np.uint16)
    write_stack(tmp_path, "b", planes, {"z_um": [0, 1, 3], **OPTICS, "na": 0.3})
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack")
    truth = {"z_plane": [0, 1, 2], "pixel_um": 0.5}
    (tmp_path / "a.json").write_text(json.dumps(truth))
    tifffile.imwrite(tmp_path / "no_truth_stack.tif", planes, photometric="minisblack")
    with pytest.raises(InputError, match=r"stack a lack na, wavelength_um, refractive_index; .*"):
        find_stacks(tmp_path)
    given = tmp_path / "optics.json"
    known = {name: OPTICS[name] for name in ("na", "wavelength_um", "refractive_index")}
    given.write_text(json.dumps({"a": known, "b_stack": {"na": 0.4}}))
    a, b = find_stacks(tmp_path, given)
    assert (a.name, a.in_um, a.optics) == ("a", False, {**known, "pixel_size_um": 0.5})
    assert (b.name, b.in_um, b.optics) == ("b", True, {**OPTICS, "na": 0.4})
    assert b.z.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({}, "lacks z_um, or z_plane"),
        ({"z_um": [0, 1, 1]}, "must be different, finite numbers"),
        ({"z_um": ["near", "far"]}, "damaged and no valid truth"),
    ],
)
def test_a_truth_that_says_no_z_is_refused(tmp_path, truth, message):
    write_stack(tmp_path, "x", np.zeros((3, 8, 8), np.uint16), {**truth, **OPTICS})
    with pytest.raises(InputError, match=message):
        find_stacks(tmp_path)


def test_a_folder_without_stacks_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no NAME_stack"):
        find_stacks(tmp_path)


# --- scores


def made_up(slope: float = 1.0, half_width: float = 0.2, tiles: int = 8) -> pd.DataFrame:
    """Estimates of a network whose values are slope * distance, with errors of +-0.1 um."""
    tile, plane = (index.ravel() for index in np.indices((tiles, 9)))
    focus = np.where(tile == tiles - 1, np.nan, 0.1 * tile)  # the last tile has no truth
    truth = np.abs(plane - 4 - focus)
    error = np.where((plane + tile) % 2, 0.1, -0.1)
    return pd.DataFrame(
        {
            **{"network": "n", "context": "none", "stack": "s", "unit": "um", "tile": tile},
            **{"block": tile, "plane": plane, "z": plane - 4, "focus_z": focus, "peak": 1.2},
            **{"truth": truth, "estimate": slope * truth + error, "half_68": half_width},
            **{"half_95": 2 * half_width, "content": np.where(plane == 0, 0.1, 0.9)},
            **{
                "centred": tile / 10.0,
                "contrast": plane / 10,
                "brightness": 100.0 - plane,
                "out_of_range": truth > 3.45,
            },
        }
    )


def test_scores_of_known_errors():
    found = score_stack(made_up()).set_index("patches")
    whole, content = found.loc["all"], found.loc["content"]
    assert (whole["tiles"], whole["estimates"], content["estimates"]) == (7, 63, 56)
    assert whole["rms_um"] == pytest.approx(0.1)
    assert (whole["within_68"], whole["within_95"]) == (1, 1)
    assert whole["called_content"] == pytest.approx(8 / 9)
    assert whole["content_in_empty_tiles"] == pytest.approx(8 / 9)
    # out of range: plane 0 of 7 tiles, without content; plane 8 of 6 tiles, plane 1 of 2 tiles
    assert whole["content_out_of_range"] == pytest.approx(8 / 15)
    assert whole["rank"] > 0.98
    narrow = score_stack(made_up(half_width=0.06)).set_index("patches").loc["all"]
    assert (narrow["within_68"], narrow["within_95"]) == (0, 1)


def test_a_stack_without_known_foci_has_no_scores():
    found = score_stack(made_up(tiles=1)).set_index("patches").loc["all"]
    assert (found["tiles"], found["estimates"]) == (0, 0)
    assert found[["rank_within", "rank", "rms_um", "called_content"]].isna().all()
    assert found["content_in_empty_tiles"] == pytest.approx(8 / 9)


def test_a_wrong_scale_costs_rms_and_is_mended_by_a_calibration():
    found = score_stack(made_up(slope=0.25)).set_index("patches").loc["all"]
    assert found["rms_um"] > 1
    assert found["calibrated_rms"] < 0.5  # errors of 0.1 um at a slope of 0.25 are 0.4 um
    assert score_stack(made_up(slope=-1)).set_index("patches").loc["all", "rank_within"] < -0.98


def test_rank_within_a_tile_ignores_offsets_between_tiles():
    rows = made_up()
    rows["estimate"] = rows["truth"] + 5.0 * rows["tile"]
    found = score(rows[rows["focus_z"].notna()])
    assert found["rank_within"] == pytest.approx(1)
    assert found["rank"] < 0.5


def test_ranks_of_tiles_are_those_of_scipy():
    rows = made_up().dropna()
    rows["estimate"] = (
        np.random.default_rng(0).normal(rows["truth"], 1.0).round(1)
    )  # some are equal
    rows.loc[rows["tile"] == 2, "estimate"] = 1.5
    found = tile_ranks(rows[(rows["tile"] != 3) | (rows["plane"] < 3)])
    assert found.index.tolist() == [0, 1, 2, 4, 5, 6]  # tile 3 has three planes
    expected = {
        tile: spearmanr(one["estimate"], one["truth"]).statistic
        for tile, one in rows[~rows["tile"].isin([2, 3])].groupby("tile")
    }
    assert found.drop(2).to_dict() == pytest.approx(expected)
    assert found[2] == 0


def test_terciles_split_the_patches_with_content():
    rows = made_up()
    rows["half_68"] = np.where(rows["contrast"] > 0.55, 0.2, 0.01)  # planes 6, 7, 8 are covered
    found = score_stack(rows).set_index("patches")
    shares = found.loc[["contrast low", "contrast high", "brightness high"], "within_68"]
    assert shares.iloc[0] == 0
    assert shares.iloc[1] > 0.99
    assert shares.iloc[2] == 0  # the brightest planes are those of least contrast
    assert found.loc["contrast low":"contrast high", "estimates"].sum() == 56


def test_planes_without_a_unit_have_ranks_alone():
    rows = made_up().assign(unit="planes", half_68=np.nan, half_95=np.nan)
    found = score_stack(rows).set_index("patches").loc["all"]
    assert found[["rms_um", "within_68", "within_95"]].isna().all()
    assert found["rank_within"] > 0.98
    assert "| s | all | 7 | 1.00" in markdown(score_stack(rows))


def test_intervals_hold_the_score_and_overlapping_tiles_count_once():
    generator = np.random.default_rng(0)
    rows = made_up(tiles=41).dropna()
    rows["estimate"] += generator.normal(0, 0.5, 41)[rows["tile"]]  # an error per tile
    apart, together = intervals(rows), intervals(rows.assign(block=rows["tile"] // 4))
    assert apart["rms_um_low"] < score(rows)["rms_um"] < apart["rms_um_high"]
    copies = pd.concat([rows.assign(tile=rows["tile"] + 100 * k) for k in range(4)])
    widths = [one["rms_um_high"] - one["rms_um_low"] for one in (apart, intervals(copies))]
    assert widths[0] == pytest.approx(widths[1], rel=0.01)
    assert together["rms_um_low"] < together["rms_um_high"]
    assert intervals(rows[rows["tile"] < 2]) == {}


def test_the_mean_is_over_stacks_and_not_over_patches():
    good, bad = made_up(), made_up(half_width=0.01, tiles=3).assign(stack="other")
    table = pd.concat([score_stack(good), score_stack(bad)])
    found = mean_rows(table).set_index("patches").loc["all"]
    assert found["within_68"] == pytest.approx(0.5)
    assert (found["stack"], found["tiles"]) == ("mean", 9)
    assert called_content(good[:0]) is np.nan


def test_the_picture_shows_medians_of_bins():
    rows = made_up()[lambda t: t["focus_z"].notna()]
    x, y, bar = binned(rows)
    assert len(x) == 10
    assert np.all(np.diff(x) >= 0)
    assert y == pytest.approx(x, abs=0.11)
    assert set(bar) == {0.2}
    both = pd.concat([rows, rows.assign(context="image")])
    axes = draw(both).axes
    assert [one.get_title() for one in axes] == ["s\nn, context: none", "s\nn, context: image"]
    assert len({one.lines[1].get_color() for one in axes}) == 2


# --- the whole


def blurred_stack(z_um: list[float]) -> np.ndarray:
    """Counts of a texture on two halves, whose foci are 3 um apart."""
    generator = torch.Generator().manual_seed(0)
    texture = (torch.rand(1, 128 + 94, 256 + 94, generator=generator) > 0.9).float()
    microscope, planes = Microscope(**OPTICS), []
    for z in z_um:
        halves = []
        for part, focus_um in ((texture[:, :, : 128 + 94], 0.0), (texture[:, :, 128:], 3.0)):
            waves = torch.tensor([[abs(z - focus_um) / microscope.um_per_wave]])
            halves.append(blur_valid(part, synthesize("zernike1d", waves, microscope, 95)))
        light = 3000 * torch.cat(halves, 2).clamp(min=0)
        planes.append(camera_counts(light, generator, 1.6, 1.0, 100.0)[0])
    return torch.stack(planes).clamp(0, 65535).numpy().astype(np.uint16)


def test_a_simulated_stack_is_judged_in_each_context(tmp_path, monkeypatch):
    z_um = [-12.0, -8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 9.0, 14.0]
    write_stack(tmp_path, "halves", blurred_stack(z_um), {"z_um": z_um, **OPTICS})
    load, map_stack = real_stacks.load_estimator, real_stacks.map_stack

    def with_context(*arguments: object) -> Estimator:
        return replace(load(*arguments), context=torch.nn.Identity())

    def shifted_map(recording: Recording, context: str) -> list[PsfMap]:
        shift = {"none": 0.0, "image": 1.0}[context]  # waves
        maps = map_stack(recording, "none")
        return [replace(one, values=one.values + shift) for one in maps]

    monkeypatch.setattr(real_stacks, "load_estimator", with_context)
    monkeypatch.setattr(real_stacks, "map_stack", shifted_map)
    out, contexts = tmp_path / "out", ("none", "image")
    real_stacks.main(
        real_stacks.Config(folder=tmp_path, stride=128, context=contexts, device="cpu", out=out)
    )
    patches = pd.read_csv(out / "real_stacks_patches.csv")
    focus = patches.groupby("tile")["focus_z"].first()
    assert focus.tolist() == pytest.approx([0, 3], abs=0.7)
    scores = pd.read_csv(out / "real_stacks.csv")
    scores = scores[(scores["stack"] == "halves") & (scores["patches"] == "all")]
    assert tuple(scores["context"]) == contexts
    assert scores["tiles"].tolist() == [2, 2]
    assert scores["estimates"].tolist() == [20, 20]
    assert scores["rank_within"].iloc[0] > 0.9
    assert scores["rms_um"].iloc[0] < 3 < scores["rms_um"].iloc[1]  # 1 wave is 6.6 um
    alone, shifted = (patches.loc[patches["context"] == c, "estimate"].mean() for c in contexts)
    assert shifted - alone == pytest.approx(Microscope(**OPTICS).um_per_wave, rel=1e-4)
    assert (out / "real_stacks.png").stat().st_size > 10_000
    text = (out / "real_stacks.md").read_text("utf-8")
    assert "| zernike1d_tilted | image | halves | all | 2 |" in text


def test_signs_count_for_networks_that_tell_them():
    estimator = real_stacks.load_estimator(Path("astigmatic_tilted"), torch.device("cpu"))
    distance = np.array([-2.0, -1.0, 1.0, np.nan, 2.0])
    model = estimator.psf_model
    found = real_stacks.with_direction(distance, -distance, model, "focus")
    assert found["truth"][[0, 1, 2, 4]].tolist() == [2, 1, -1, -2]
    assert found["estimate"][[0, 1, 2, 4]].tolist() == [2, 1, -1, -2]
    unsigned = real_stacks.load_estimator(Path("zernike1d_tilted"), torch.device("cpu")).psf_model
    found = real_stacks.with_direction(distance, np.array([2.0, 1, 1, 0, 2]), unsigned, "focus")
    assert found["truth"][[0, 1, 2, 4]].tolist() == [2, 1, 1, 2]


def test_a_wrong_number_of_planes_is_refused(tmp_path):
    planes = np.random.default_rng(0).poisson(100, (3, 128, 128)).astype(np.uint16)
    write_stack(tmp_path, "x", planes, {"z_um": [0, 1], **OPTICS})
    with pytest.raises(InputError, match="has 3 planes, its truth z of 2"):
        real_stacks.main(real_stacks.Config(folder=tmp_path, out=tmp_path / "out"))
