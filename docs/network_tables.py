"""Tables of networks on held-out images: scores, depth, real stacks, specimens and objectives."""

from statistics import fmean, median, stdev
from typing import Any

from csv_tables import Number, Row, Table, pivot, row, rows, span, table, with_interval

SHIPPED, TILTED = "shipped/benchmark.csv", "shipped_tilted/benchmark.csv"
REFERENCE = "reference_optics/benchmark.csv"
SEEDS = "seeds/benchmark.csv"
BAYES = "bayes_table.csv"
ARCHITECTURES = "architectures.csv"
CROSS_DOMAIN = "cross_domain/benchmark.csv"
LAW = "learning_curve/learning_curve.csv"
DRIFTS = {"1000": "drift/planes.csv", "100": "drift_100/planes.csv"}  # by photons per pixel
DEPTH, DOME = "depth_summary.csv", "depth_dome.csv"
STACKS = "real_stacks.csv"
SPECIMENS = "specimens.csv"
IMAGES = "images.csv"
OBJECTIVES = "objectives.csv"
NA = "na_estimate.csv"
CONDITIONS = ("noise-free", "8-bit", "1000 photons", "100 photons", "10 photons")
LIGHT = ("1000 photons", "100 photons", "10 photons")

R2_COLUMNS = {
    "noise-free": "{r2[noise-free]:.3f}",
    "8 bit": "{r2[8-bit]:.3f}",
    "1000 photons/px": "{r2[1000 photons]:.3f}",
    "100": "{r2[100 photons]:.3f}",
    "10": "{r2[10 photons]:.3f}",
}
BARS = {
    "within 68 %, 95 % error bars at 1000": "{coverage_68[1000 photons]:.0%}, "
    "{coverage_95[1000 photons]:.0%}"
}


def _scores(*files: str, **equal: Any) -> list[Row]:
    """Scores on all images, by condition; one row per network and parameter."""
    found = [entry for file in files for entry in rows(file, images="all", **equal)]
    return pivot(found, "condition", ("network", "parameter", "unit"))


def _bright_rmse(scores: Row) -> str:
    """Rmse at 1000 photons in the unit of the label, and in µm for focus."""
    value, depth = scores["rmse"]["1000 photons"], scores["rmse_um"]["1000 photons"]
    is_depth = scores["unit"] == "waves" and depth == depth
    return f"{value:.2f} {scores['unit']}" + (f", {depth:.2f} µm" if is_depth else "")


def shipped_networks() -> Table:
    """R² and error bars of every shipped network on its own test set."""
    scores = [line | {"error": _bright_rmse(line)} for line in _scores(SHIPPED, TILTED)]
    columns = {"network": "`{network}`", "parameter": "{parameter}"} | R2_COLUMNS
    return table(scores, columns | {"rmse at 1000": "{error}"} | BARS, (SHIPPED, TILTED), labels=2)


def reference_optics() -> Table:
    """R² and error bars at the optics of the paper."""
    return table(_scores(REFERENCE), {"network": "`{network}`"} | R2_COLUMNS | BARS, (REFERENCE,))


def seeds() -> Table:
    """Mean and standard deviation of R² over trainings that differ in their seed only."""
    lines = []
    for condition in CONDITIONS:
        scores = [entry["r2"] for entry in rows(SEEDS, images="all", condition=condition)]
        spread = stdev(scores) if len(scores) > 1 else float("nan")
        lines.append(
            {"condition": condition, "count": len(scores), "scores": span(scores, ".3f")}
            | {"mean": Number(fmean(scores)), "spread": Number(spread)}
        )
    columns = {
        "condition": "{condition}",
        "trainings": "{count}",
        "R², mean": "{mean:.3f}",
        "standard deviation": "{spread:.3f}",
        "lowest to highest": "{scores}",
    }
    derived = ("trainings", "R², mean", "standard deviation")
    return table(lines, columns, (SEEDS,), derived=derived)


def architectures() -> Table:
    """Test scores of two architectures that saw the same stream of patches."""
    scores = pivot(rows(ARCHITECTURES, split="test"), "condition", ("network", "weights"))
    lines = []
    for line in scores:
        seen, seconds = (line[name]["noise-free"] for name in ("patches_seen", "seconds"))
        lines.append(line | {"millions": line["weights"] * 1e-6, "seen": seen})
        lines[-1]["minutes"] = seconds * (1 / 60)
    columns = {
        "network": "`{network}`",
        "weights": "{millions:.1f} M",
        "patches seen": "{seen:,.0f}",
        "minutes": "{minutes:.0f}",
    }
    return table(lines, columns | R2_COLUMNS, (ARCHITECTURES,), derived=("weights", "minutes"))


def cross_domain() -> Table:
    """R² of networks trained on one kind of images, on both kinds."""
    of_kind = {"condition": "1000 photons", "trained_on": ("builtin", "procedural")}
    names = {"builtin": "photographs and micrographs", "procedural": "procedural objects"}
    scores = pivot(rows(CROSS_DOMAIN, **of_kind), "images", ("trained_on",))
    lines = [line | {"name": names[line["trained_on"]]} for line in scores]
    columns = {"trained on": "{name}"} | {names[kind]: f"{{r2[{kind}]:.3f}}" for kind in names}
    return table(lines, columns, (CROSS_DOMAIN,))


def more_training() -> Table:
    """Patches that the fitted power law asks for."""
    goals = ((0.95, "1000 photons"), (0.93, "100 photons"), (0.93, "10 photons"))
    lines = [
        {
            "goal": f"R² {goal} at {light}",
            "patches": row(LAW, condition=light)[f"patches_for_{goal}"],
        }
        for goal, light in goals
    ]
    return table(lines, {"goal": "{goal}", "patches": "{patches:words}"}, (LAW,), ("patches",))


def depth() -> Table:
    """Depth of tilted planes, with a cylindrical lens and without."""
    names = {"astigmatic": "cylindrical lens", "zernike1d": "no lens, distance"}
    order = {"model": tuple(names), "photons": (1000, 100), "degrees": (3, 6, 10)}
    lines = []
    for line in rows(DEPTH, **order):
        wrong = line["wrong_signs_share"] if line["model"] == "astigmatic" else Number("nan")
        lines.append(line | {"name": names[line["model"]], "wrong": wrong})
    columns = {
        "": "{name}",
        "photons/px": "{photons:.0f}",
        "tilt": "{degrees:.0f}°",
        "profile, rms (best to worst texture)": "{profile_rms_um:.2f} µm "
        "({best_texture_um:.2f} to {worst_texture_um:.2f})",
        "single patches, rms": "{patch_rms_um:.2f} µm",
        "usable": "{usable_from_um:.0f} to {usable_to_um:.0f} µm",
        "wrong signs more than 3.3 µm from focus": "{wrong:.1%}",
        "refused out of range": "{refused_share_out_of_range:.0%}",
    }
    return table(lines, columns, (DEPTH,), labels=3)


def dome() -> Table:
    """Error of depth on a curved surface."""
    columns = {"object, photons/px": "{texture}, {photons:.0f}", "depth, rms": "{rms_um:.2f} µm"}
    return table(rows(DOME), columns, (DOME,))


def drift() -> Table:
    """Mean focus of the frames of a simulated series against its truth."""
    lines = []
    for photons, file in DRIFTS.items():
        frames = rows(file)
        errors = [frame["depth_um"] - frame["true_depth_um"] for frame in frames]
        rms = sum(error**2 for error in errors) / len(errors)
        change, true = (
            frames[-1][name] - frames[0][name] for name in ("depth_um", "true_depth_um")
        )
        line = {"photons": photons, "rms": Number(rms**0.5), "worst": Number(max(map(abs, errors)))}
        lines.append(line | {"change": Number(change), "true": Number(true)})
    columns = {"photons/px": "{photons}", "mean focus of a frame, rms error": "{rms:.2f} µm"}
    columns |= {"largest error": "{worst:.2f} µm", "change, first to last frame": "{change:.1f} µm"}
    columns |= {"true change of these patches": "{true:.1f} µm"}
    return table(lines, columns, tuple(DRIFTS.values()), tuple(columns)[1:])


def real_stacks() -> Table:
    """Rank, error and coverage on real focal stacks, for patches with content."""
    stacks = {"dfnn_mitochondria": "mitochondria", "tissue_section": "tissue"}
    stacks |= {"brightfield_cells": "cells"}
    ways = {"none": "alone", "image": "image", "stack": "stack"}
    readings = (("zernike1d_tilted", "none"), *(("focus", way) for way in ways))
    lines = []
    for stack, name in stacks.items():
        for network, way in readings:
            same = {"stack": stack, "network": network, "context": way}
            line = row(STACKS, patches="content", **same)
            called = row(STACKS, patches="all", **same)["called_content"]
            unit = "µm" if line["unit"] == "um" else line["unit"]
            lines.append(line | {"name": name, "way": ways[way], "called": called, "unit": unit})
    columns = {
        "stack": "{name}",
        "network, seen": "`{network}`, {way}",
        "tiles": "{tiles:.0f}",
        "rank within a tile": with_interval("rank_within"),
        "rank, all": with_interval("rank"),
        "rms": "{rms_um:.2f} µm ({rms_um_low:.2f} to {rms_um_high:.2f})",
        "rms, calibrated": "{calibrated_rms:.2f} {unit}",
        "within 68 %": with_interval("within_68"),
        "within 95 %": with_interval("within_95"),
        "called content: known focus": "{called:.2f}",
    }
    return table(lines, columns, (STACKS,), labels=2)


def stack_means() -> Table:
    """Rank correlations, mean of the three real stacks."""
    readings = (("focus", "stack"), ("zernike1d_tilted", "none"))
    names = {"stack": "in the stack", "none": "alone"}
    lines = []
    for network, way in readings:
        line = row(STACKS, stack="mean", patches="content", network=network, context=way)
        lines.append(line | {"way": names[way]})
    columns = {
        "network, mean of the three stacks": "`{network}`, {way}",
        "rank within a tile": "{rank_within:.2f}",
        "rank, all": "{rank:.2f}",
    }
    return table(lines, columns, (STACKS,))


def specimens() -> Table:
    """R², coverage and content flag by kind of specimen."""
    lines = pivot(rows(SPECIMENS), "condition", ("network", "specimen"))
    for line in lines:
        line["called"] = ", ".join(f"{share:.2f}" for share in line["called_content"].values())
        line["within"] = Number(fmean(line["within_68"].values()))
    columns = {"network": "`{network}`", "specimen": "{specimen}"}
    columns |= {name: f"{{r2[{name}]:.3f}}" for name in ("noise-free", *LIGHT)}
    columns |= {"within 68 %": "{within:.0%}", "called content": "{called}"}
    return table(lines, columns, (SPECIMENS,), derived=("within 68 %",), labels=2)


def images() -> Table:
    """R² of patches read alone, in their image and in their focal stack."""
    soft = {"optics": "reference", "specimens": "soft and hazy", "softness_px": "all"}
    lines = []
    for planes, ways in ((1, ("alone", "image")), (9, ("alone", "image", "stack"))):
        chosen = rows(IMAGES, planes=planes, photons_per_px=(1000, 100, 10), **soft)
        for way in ways:
            line = {e["photons_per_px"]: e["r2"] for e in chosen if e["estimate"] == way}
            title = "images of 25 patches" if planes == 1 else "stacks of 9 planes"
            seen = {"alone": "alone", "image": "in the plane", "stack": "in the stack"}[way]
            lines.append({"title": title, "seen": seen, "r2": line})
    columns = {
        "R² of focus": "{title}",
        "patches seen": "{seen}",
        "1000 photons/px": "{r2[1000]:.2f}",
    }
    return table(
        lines, columns | {"100": "{r2[100]:.2f}", "10": "{r2[10]:.2f}"}, (IMAGES,), labels=2
    )


def objectives() -> Table:
    """R² of thirty objectives and cameras: the range of most, and the hardest objective."""
    hardest = "100x/1.45"
    columns = {"noise-free": "noise_free", "1000 photons": "1000_photons", "100": "100_photons"}
    lines = []
    for name, is_hardest in ((hardest, True), ("the other nine", False)):
        chosen = [e for e in rows(OBJECTIVES) if (e["objective"] == hardest) == is_hardest]
        spans = [span([e[f"r2_{light}"] for e in chosen], ".3f") for light in columns.values()]
        lines.append((name, str(len(chosen)), *spans))
    header = ("R² of focus, objective", "cameras x objectives", *columns)
    return Table(header, tuple(lines), (OBJECTIVES,), ("cameras x objectives",))


def na_from_the_image() -> Table:
    """NA that was estimated from simulated images, by photons per pixel."""
    lines = []
    for photons in (100, 1000, 10000):
        told = rows(NA, photons=photons, told="True")
        within = [Number(fmean(abs(e["pull"]) < limit for e in told)) for limit in (1, 2)]
        line = {"photons": photons, "told": len(told), "all": len(rows(NA, photons=photons))}
        error = Number(median(abs(e["na_found"] / e["na"] - 1) for e in told))
        lines.append(line | {"error": error, "one": within[0], "two": within[1]})
    columns = {
        "photons per pixel": "{photons}",
        "told": "{told} of {all}",
        "median error": "{error:.1%}",
        "within one, two standard errors": "{one:.0%}, {two:.0%}",
    }
    return table(lines, columns, (NA,), derived=tuple(columns)[1:])


def bayes_difference() -> Table:
    """How far `zernike1d` is from the Bayes-optimal estimate on Gaussian textures."""
    line = {}
    for photons in (1000, 100, 10):
        best, ours = (
            row(BAYES, estimator=name, contrast=0.2, photons=photons)["r2"]
            for name in ("Bayes", "zernike1d")
        )
        line[photons] = Number(best - ours)
    columns = {"": "R², Bayes-optimal minus `zernike1d`"}
    columns |= {f"{photons} photons": f"{{r2[{photons}]:.2f}}" for photons in line}
    return table([{"r2": line}], columns, (BAYES,), derived=tuple(columns)[1:])
