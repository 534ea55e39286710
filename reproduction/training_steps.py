"""Steps of the scales that train networks: smoke, quick and full."""

from dataclasses import astuple, dataclass
from pathlib import Path

from psf.microscope import OPTICS_NAMES, Microscope
from reproduction.claims import Claim
from reproduction.steps import Step

MAPPED = "zernike1d"  # PSF model of the tilted plane, which shows pure defocus
PAPER_R2 = {"noise-free": "up to 0.99"}  # by condition; Shajkofci & Liebling 2020


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of a reproduction, and the scores that it must reach."""

    psf_models: tuple[str, ...]
    networks: tuple[str, ...]  # the first one also makes the map
    images: str  # as --images of generate_training_set.py
    train_patches: int
    validation_patches: int
    test_patches: int
    budget: tuple[str, ...]  # options of train.py for the patches and the end of the training
    stride: int  # of the map, px
    restoration: tuple[str, ...] = ()  # options of deconvolve.py
    # Least R^2 of the first network by condition. Lower scores mean that something is broken. None:
    # any score will do.
    expected_r2: dict[str, float | None]


SCALES = {
    "smoke": Scale(
        psf_models=("zernike1d",),
        networks=("spectral_resnet", "resnet18"),
        images="builtin",
        train_patches=512,
        validation_patches=64,
        test_patches=128,
        budget=("--epochs", "1"),
        stride=32,
        restoration=("--iterations", "10", "--refine", "no"),
        expected_r2={"noise-free": None},  # 512 patches teach nothing
    ),
    "quick": Scale(
        psf_models=("zernike1d",),
        networks=("spectral_resnet", "resnet18"),
        images="mixed",
        train_patches=16_000,
        validation_patches=500,
        test_patches=1600,
        budget=("--max-minutes", "2.5"),
        stride=16,
        # well below a run that saw 50,000 patches: 0.98, 0.85 and 0.71
        expected_r2={"noise-free": 0.95, "1000 photons": 0.80, "100 photons": 0.62},
    ),
    "full": Scale(
        psf_models=("gaussian1d", "gaussian2d", "zernike1d", "zernike2d", "astigmatic"),
        networks=("spectral_resnet", "resnet34", "resnext50"),
        images="mixed",
        train_patches=0,  # all are fresh: 15 million for each network
        validation_patches=5000,
        test_patches=10_000,
        budget=("--fresh", "--epochs", "75", "--epoch-patches", "200000"),
        stride=16,
        # those of the shipped network, which has seen 0.4 million patches
        expected_r2={"noise-free": 0.99, "1000 photons": 0.94, "100 photons": 0.88},
    ),
}


def training_steps(name: str) -> list[Step]:
    """Steps of a scale: simulate, train and benchmark each PSF model, then map and restore."""
    scale = SCALES[name]
    steps = [step for model in scale.psf_models for step in _model_steps(name, model, scale)]
    return steps + _map_steps(name, scale)


def training_claims(name: str) -> list[Claim]:
    """R^2 of focus that the first network of a scale should reach on photographs."""
    scale = SCALES[name]
    return [
        Claim(
            what=f"R² of focus on held-out photographs, {condition}",
            paper=PAPER_R2.get(condition, ""),
            table=Path("results") / name / MAPPED / "benchmark.csv",
            rows={
                "architecture": scale.networks[0],
                "images": "builtin",
                "condition": condition,
                "parameter": "focus",
            },
            column="r2",
            at_least=least,
        )
        for condition, least in scale.expected_r2.items()
    ]


def _model_steps(name: str, model: str, scale: Scale) -> list[Step]:
    """Steps of one PSF model: simulate, train every network, benchmark."""
    data = Path("data") / f"{name}_{model}"
    runs = {network: Path("runs") / f"{name}_{model}" / network for network in scale.networks}
    results = Path("results") / name / model
    counts = ("--train-patches", str(scale.train_patches))
    counts += ("--validation-patches", str(scale.validation_patches))
    counts += ("--test-patches", str(scale.test_patches))
    counts += ("--patches-per-crop", "1")  # slower, but no two patches show the same content
    simulate = ("generate_training_set.py", "--psf-model", model, "--images", scale.images)
    simulate += (*counts, "--out", str(data))
    steps = [Step(f"simulate_{model}", (simulate,), (data / "run.json", data / "preview.png"))]
    for network, folder in runs.items():
        command = ("train.py", "--data", str(data), "--out", str(folder), "--model", network)
        command += (*scale.budget, "--resume")
        steps.append(Step(f"train_{model}_{network}", (command,), (folder / "run.json",), (data,)))
    command = ("benchmark_models.py", "--data", str(data), "--out", str(results))
    command += ("--checkpoints", *map(str, runs.values()))
    outputs = (results / "benchmark.csv", results / "scatter.png")
    return [*steps, Step(f"benchmark_{model}", (command,), outputs, (data, *runs.values()))]


def _map_steps(name: str, scale: Scale) -> list[Step]:
    """Steps that blur a test image as a tilted plane, map its PSF and restore it."""
    plane, out = Path("data") / f"{name}_tilted_plane", Path("results") / name / "map"
    restored = Path("results") / name / "restored"
    checkpoint = Path("runs") / f"{name}_{MAPPED}" / scale.networks[0]
    command = ("estimate_psf_map.py", str(plane / "image.tif"), "--checkpoint", str(checkpoint))
    command += (*optics_flags(), "--stride", str(scale.stride), "--out", str(out))
    command += ("--truth", str(plane / "truth.tif"))
    restore = ("deconvolve.py", str(plane / "image.tif"), "--map", str(out), *scale.restoration)
    restore += ("--out", str(restored))
    simulate = ("simulate_tilted_plane.py", "--out", str(plane))
    return [
        Step("tilted_plane", (simulate,), (plane / "run.json",)),
        Step("map", (command,), (out / "config.json", out / "overview.png"), (plane, checkpoint)),
        Step("restore", (restore,), (restored / "side_by_side.png",), (plane, out)),
    ]


def optics_flags() -> tuple[str, ...]:
    """Options that give the optics of the simulations, the default `Microscope`."""
    optics = zip(OPTICS_NAMES, astuple(Microscope()), strict=True)
    return tuple(text for n, v in optics for text in (f"--{n.replace('_', '-')}", str(v)))
