"""Steps of the scale paper: every table and figure of results/ from the shipped networks."""

from pathlib import Path
from typing import Any

from reproduction.claims import Claim
from reproduction.steps import Step
from reproduction.training_steps import optics_flags

RESULTS, DATA, WEIGHTS = Path("results"), Path("data/paper"), Path("checkpoints")

# --- the test sets of the shipped networks

# Options of generate_training_set.py by folder. Test images and labels are those of the commands on
# the model cards, whose training patches are left out.
TEST_SETS = {
    "zernike1d": "--psf-model zernike1d --vary-optics --test-patches 3000",
    "zernike2d": "--psf-model zernike2d --vary-optics --optics.nyquist-share 0.9 1.0 "
    "--test-patches 2000",
    "astigmatic": "--psf-model astigmatic --vary-optics --test-patches 2000",
    "gaussian1d": "--psf-model gaussian1d --test-patches 2000",
    "gaussian2d": "--psf-model gaussian2d --test-patches 2000",
    "zernike1d_reference": "--psf-model zernike1d --test-patches 2000",
}
SHIPPED = ("zernike1d", "zernike2d", "astigmatic", "gaussian1d", "gaussian2d")
TILTED = ("zernike1d_tilted", "zernike2d_tilted", "astigmatic_tilted")
REFERENCE = ("zernike1d", "zernike1d_tilted", "focus")
# Settings of `focus`; its card has the command. Training patches do not matter here.
FOCUS_DATA = (
    "--psf-model zernike1d --focus-change-waves 1.2 --beyond-fraction 0.1 --optics.na 0.1 1.45 "
    "--optics.nyquist-share 0.85 3.3 --vary-optics --images mixed --seed 3 --defocus exact "
    "--train-patches 0 --validation-patches 1 --test-patches 1500 --specimens.plain 0.4 "
    "--specimens.thick 0.35 --specimens.soft 0.35 --specimens.hazy 0.35 "
    "--specimens.haze-only 0.04 --specimens.background 0.4 --specimens.sparse 0.25"
)


def _weights(*names: str) -> tuple[Path, ...]:
    return tuple(WEIGHTS / name for name in names)


def _data(*names: str) -> tuple[Path, ...]:
    return tuple(DATA / name for name in names)


def _text(*paths: Path) -> tuple[str, ...]:
    return tuple(map(str, paths))


def _benchmark(name: str, networks: tuple[str, ...], sets: tuple[str, ...]) -> Step:
    """Step that scores shipped networks on test sets."""
    out, data = RESULTS / name, _data(*sets)
    command = ("benchmark_models.py", "--checkpoints", *networks, "--data", *_text(*data))
    outputs = (out / "benchmark.csv", out / "scatter.png", out / "reliability.png")
    inputs = (*_weights(*networks), *data)
    return Step(name, ((*command, "--out", str(out)),), outputs, inputs)


def _test_sets() -> Step:
    """Step that simulates the test patches, and a small training set for its picture."""
    common = "--images mixed --patches-per-crop 1 --seed 1 --train-patches 0 --validation-patches 1"
    commands = [
        ("generate_training_set.py", *options.split(), *common.split(), "--out", str(DATA / name))
        for name, options in TEST_SETS.items()
    ]
    commands.append(("generate_training_set.py", *FOCUS_DATA.split(), "--out", str(DATA / "focus")))
    preview = DATA / "zernike1d_reference" / "preview.png"
    outputs = tuple(DATA / name / "run.json" for name in (*TEST_SETS, "focus"))
    copies = ((preview, RESULTS / "preview.png"),)
    return Step("test_sets", tuple(commands), (*outputs, RESULTS / "preview.png"), copies=copies)


# --- the tables and figures


def paper_steps(stacks: Path | None = None) -> list[Step]:
    """All steps in order; those of real stacks need the folder `stacks`."""
    return [
        _test_sets(),
        _gallery(),
        _benchmark("shipped", SHIPPED, SHIPPED),
        _benchmark("shipped_tilted", TILTED, ("zernike1d", "zernike2d", "astigmatic")),
        _benchmark("reference_optics", REFERENCE, ("zernike1d_reference",)),
        _noise(),
        *_recorded(),
        _depth(),
        _maps(),
        *(_drift(photons) for photons in (1000, 100)),
        *_objects_and_optics(),
        *_restoration(),
        _speed(),
        *([] if stacks is None else _real_stacks(stacks)),
        _tables(),
    ]


def _gallery() -> Step:
    oil = "--na 1.3 --wavelength-um 0.6 --pixel-size-um 0.1 --light vectorial"
    oil += " --layers.n-immersion 1.515 --depth-um 10"
    plain, layered = RESULTS / "figure_psf.png", RESULTS / "figure_psf_oil.png"
    commands = (
        ("figure_psf.py", "--out", str(plain)),
        ("figure_psf.py", *oil.split(), "--out", str(layered)),
    )
    return Step("psf_gallery", commands, (plain, layered), draw=commands)


def _noise() -> Step:
    data = DATA / "zernike1d_reference"
    scores = ("benchmark_models.py", "--noise", "--checkpoints", "zernike1d", "focus")
    scores += ("--data", str(data), "--out", str(RESULTS))
    bayes = ("benchmarks/bayes_reference.py", "--checkpoints", "checkpoints/zernike1d")
    bayes += ("--data", str(data), "--out", str(RESULTS))
    figure = ("figure_noise_resistance.py", "--results", str(RESULTS))
    outputs = ("noise.csv", "bayes_reference.csv", "bayes_objects.csv")
    outputs += ("figure_noise_resistance.png",)
    return Step(
        "noise",
        (scores, bayes, figure),
        tuple(RESULTS / name for name in outputs),
        (data, *_weights("zernike1d", "focus")),
        optional_inputs=(RESULTS / "noise_rivals.csv",),
        draw=(figure,),
    )


def _recorded() -> list[Step]:
    """Figures of trainings that take hours; they are drawn from the recorded tables."""
    curve, table = RESULTS / "learning_curve", RESULTS / "architectures.csv"
    networks = (("figure_architectures.py", "--results", str(RESULTS)),)
    patches = (("figure_learning_curve.py", "--results", str(curve)),)
    return [
        Step(
            "architectures",
            networks,
            (RESULTS / "figure_architectures.png",),
            (table,),
            draw=networks,
        ),
        Step(
            "learning_curve",
            patches,
            (curve / "learning_curve.png",),
            (curve / "benchmark.csv",),
            draw=patches,
        ),
    ]


def _depth() -> Step:
    bound, figure = ("benchmarks/depth_bound.py",), ("figure_depth.py", "--out", str(RESULTS))
    outputs = ("depth_bound.csv", "depth.csv", "depth_summary.csv", "depth_dome.csv")
    outputs += ("figure_depth.png", "figure_dome.png")
    return Step(
        "depth",
        (bound, figure),
        tuple(RESULTS / name for name in outputs),
        _weights("astigmatic_tilted", "zernike1d_tilted"),
        draw=((*figure, "--draw-only"),),
    )


def _maps() -> Step:
    plane, out = DATA / "tilted_plane", RESULTS / "map"
    simulate = ("simulate_tilted_plane.py", "--source", "immunohistochemistry")
    estimate = ("estimate_psf_map.py", str(plane / "image.tif"), "--truth")
    estimate += (str(plane / "truth.tif"), "--checkpoint", "zernike1d_tilted", *optics_flags())
    commands = (
        (*simulate, "--out", str(plane)),
        (*estimate, "--stride", "16", "--out", str(out)),
        ("figure_abstract.py", "--out", str(RESULTS)),
    )
    abstract = (RESULTS / f"figure_abstract.{suffix}" for suffix in ("csv", "png"))
    outputs = (out / "overview.png", *abstract)
    return Step("maps", commands, outputs, _weights("zernike1d_tilted", "focus"))


def _drift(photons: int) -> Step:
    name = "drift" if photons == 1000 else f"drift_{photons}"
    data, out = DATA / name, RESULTS / name
    simulate = "simulate_tilted_plane.py --focus-waves 0.5 1.5 --frames 12 --drift-um 6".split()
    estimate = ("estimate_psf_map.py", str(data / "image.tif"), "--all-planes", *optics_flags())
    commands = (
        (*simulate, "--photons", str(photons), "--out", str(data)),
        (*estimate, "--truth", str(data / "truth.tif"), "--out", str(out)),
    )
    return Step(name, commands, (out / "planes.csv", out / "drift.png"), _weights("focus"))


def _objects_and_optics() -> list[Step]:
    """Scores by specimen, in images with context, by objective, and the NA from the spectrum."""
    focus = _weights("focus")
    specimens = ("benchmarks/specimens.py", "--checkpoints", "zernike1d_tilted", "focus")
    images = ("benchmarks/images.py", "--checkpoint", "focus", "--data", str(DATA / "focus"))
    images += ("--images", "24", "--stacks", "8")
    objectives = ("benchmarks/objectives.py", "--checkpoint", "focus")
    na = ("benchmarks/na_estimate.py", "--every", "5")
    tilted = _weights("zernike1d_tilted")
    return [
        Step("specimens", (specimens,), (RESULTS / "specimens.csv",), (*tilted, *focus)),
        Step("images", (images,), (RESULTS / "images.csv",), (*focus, DATA / "focus")),
        Step("objectives", (objectives,), (RESULTS / "objectives.csv",), focus),
        Step("na", (na,), (RESULTS / "na_estimate.csv", RESULTS / "na_focus.csv"), tilted),
    ]


def _restoration() -> list[Step]:
    figure = ("figure_deconvolution.py", "--out", str(RESULTS))
    figures = ("figure_deconvolution", "figure_deconvolution_errors", "figure_deconvolution_gains")
    outputs = ("deconvolution.csv", "deconvolution_summary.csv", "figure_deconvolution.npz")
    outputs += tuple(f"{name}.png" for name in figures)
    inputs = _weights("zernike1d", "zernike2d", "gaussian2d", "restoration")
    processed = ("benchmarks/processed_images.py",)
    return [
        Step(
            "deconvolution",
            (figure,),
            tuple(RESULTS / name for name in outputs),
            (*inputs, RESULTS / "deconvolution_settings.csv"),
            packages=("deepinv", "mahotas", "stardist"),
            draw=((*figure, "--draw-only"),),
        ),
        Step(
            "processed_images",
            (processed,),
            (RESULTS / "processed_images.csv", RESULTS / "processed_images_summary.csv"),
            _weights("zernike1d_tilted", "restoration"),
        ),
    ]


def _speed() -> Step:
    """Step that measures speed; other programs are measured where they are installed."""
    commands = (
        ("benchmarks/generation.py",),
        ("benchmarks/psf_synthesis.py",),
        ("benchmarks/training.py", "--data", str(DATA / "zernike1d_speed")),
        ("benchmarks/mapping.py", "--large-px", "16384", "--large-stride", "128"),
        ("benchmarks/deconvolution.py",),
        ("benchmarks/deconvolution_large.py",),
    )
    stored = ("generate_training_set.py", "--psf-model", "zernike1d", "--images", "mixed")
    stored += ("--train-patches", "16000", "--validation-patches", "500", "--test-patches", "1")
    names = ("generation", "psf_synthesis", "training", "mapping", "deconvolution")
    outputs = (RESULTS / f"benchmark_{name}.csv" for name in (*names, "deconvolution_large"))
    simulate = (*stored, "--out", str(DATA / "zernike1d_speed"))
    return Step("speed", (simulate, *commands), tuple(outputs))


# Public stacks by file name, with the optics of docs/results.md
SECTION = "--na 0.14 --wavelength-um 0.55 --pixel-size-um 1.05 --refractive-index 1"
MITOCHONDRIA = "--na 0.92 --wavelength-um 0.52 --pixel-size-um 0.1053 --refractive-index 1.33"


def _real_stacks(folder: Path) -> list[Step]:
    """Steps of the real stacks that lie in a folder; their truth files name the planes."""
    optics = folder / "optics.json"
    command = ("benchmarks/real_stacks.py", "--folder", str(folder), "--checkpoint", "focus")
    command += ("zernike1d_tilted", "--context", "none", "image", "stack")
    command += ("--optics", str(optics)) if optics.is_file() else ()
    outputs = (RESULTS / "real_stacks.csv", RESULTS / "real_stacks.png")
    steps = [Step("real_stacks", (command,), outputs, _weights("focus", "zernike1d_tilted"))]
    section, mitochondria = (
        folder / f"{name}_stack.tif" for name in ("tissue_section", "dfnn_mitochondria")
    )
    more = ("--allow-other-optics", "--out", str(RESULTS))
    restoration = _weights("focus", "restoration")
    if section.is_file():
        command = ("benchmarks/real_restoration.py", "--stack", str(section), *SECTION.split())
        outputs = (RESULTS / "real_restoration.csv", RESULTS / "real_restoration_summary.csv")
        steps.append(
            Step("real_restoration", ((*command, *more),), outputs, restoration, ("deepinv",))
        )
    if mitochondria.is_file():
        command = ("benchmarks/held_out_photons.py", str(mitochondria), *MITOCHONDRIA.split())
        command += ("--planes", "5", "18", "30", *more)
        outputs = (RESULTS / "held_out_photons.csv",)
        steps.append(Step("held_out_photons", (command,), outputs, restoration, ("deepinv",)))
    return steps


def _tables() -> Step:
    commands = (("docs/make_tables.py",),)
    sources = (*sorted(RESULTS.rglob("*.csv")), *sorted(Path("docs").glob("*.py")))
    return Step("documents", commands, (Path("README.md"),), sources, draw=commands)


# --- what should come out


def paper_claims() -> list[Claim]:
    """Numbers of the paper that the tables stand beside, and what our networks should reach."""
    return [*_estimation_claims(), *_depth_claims(), *_restoration_claims()]


def _estimation_claims() -> list[Claim]:
    """R^2 of the shipped networks; the ranges hold the 95 % intervals of an earlier run."""

    def claim(what: str, paper: str, condition: str, low: float, high: float, **rows: Any) -> Claim:
        selected = {"network": "zernike1d", "images": "all", "parameter": "focus"} | rows
        table = RESULTS / "shipped" / "benchmark.csv"
        selected |= {"condition": condition}
        return Claim(what, paper, table, selected, "r2", low, high)

    return [
        claim("R² of focus, noise-free", "up to 0.99", "noise-free", 0.999, 1.0),
        claim("R² of focus, 1000 photons per pixel", "robust", "1000 photons", 0.91, 0.97),
        claim("R² of focus, 100 photons per pixel", "robust", "100 photons", 0.84, 0.92),
        claim("R² of focus, 10 photons per pixel", "robust", "10 photons", 0.74, 0.83),
        claim("R² of signed focus, noise-free", "", "noise-free", 0.99, 1.0, network="astigmatic"),
    ]


def _depth_claims() -> list[Claim]:
    """Errors of the depth of tilted planes under the cylindrical lens, 1000 photons per pixel."""
    table, claims = RESULTS / "depth_summary.csv", []
    for degrees, most in ((3, 0.25), (6, 0.4), (10, 0.5)):
        rows = {"model": "astigmatic", "photons": 1000, "degrees": degrees}
        plane = f"plane tilted by {degrees}°"
        what = f"{plane}: error of depth, rms (µm)"
        claims.append(Claim(what, "2", table, rows, "profile_rms_um", at_most=most))
        what = f"{plane}: share of wrong signs"
        claims.append(Claim(what, "", table, rows, "wrong_signs_share", at_most=0.005))
        if degrees > 3:  # at 3 degrees the plane ends within the range
            what = f"{plane}: usable range (µm)"
            claims.append(Claim(what, "", table, rows, "usable_span_um", at_least=36))
            what = f"{plane}: share refused out of range"
            claims.append(Claim(what, "", table, rows, "refused_share_out_of_range", at_least=0.8))
    return claims


def _restoration_claims() -> list[Claim]:
    """Gains of the restoration with the estimated map, dB."""
    table = RESULTS / "deconvolution_summary.csv"
    rows = {"objects": "all", "method": "ours, estimated map"}
    ranges = {1000: (2.1, 3.0), 100: (1.3, 2.4)}  # about the 95 % intervals of an earlier run
    return [
        Claim(
            f"SNR gain of the restoration, {photons} photons (dB)",
            "",
            table,
            rows | {"photons": photons},
            "snr_gain_db",
            low,
            high,
        )
        for photons, (low, high) in ranges.items()
    ]
