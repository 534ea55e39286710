"""PSFs per second and their errors, ours and those of other open-source programs, in one run.

    python benchmarks/psf_synthesis.py

Writes two tables and prints them.

results/benchmark_psf_synthesis.csv: 64 PSFs of 127 x 127 pixels in plain defocus, -20 to 20 um,
NA 0.45 in water. Every installed program runs in one process and one thread. The programs are
timed in turn; rates are medians over the rounds, and tables that a program keeps between calls are
not timed.

results/agreement_psf_synthesis.csv: an oil lens that looks 0, 5 and 10 um into water, vectorial
light, and known faults of programs. Best focus is on each program's own z axis; `psf_peers` maps
these axes to ours.

The reference is float64 quadrature (benchmarks/psf_reference.py). An error is the largest
difference, relative to the peak of the same PSF and to that of the brightest PSF of the stack.
Programs normalise differently, so each of their PSFs is first scaled to the reference by least
squares. Our PSFs are compared without scaling. Programs that integrate over pixels are compared
with the integral, the others with point samples.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # all three are read when NumPy and torch are imported
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import importlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import jv

sys.path.insert(0, str(Path(__file__).parents[1]))

import psf_peers
from psf_peers import BESSEL, INSTALL, PEERS, Scene
from psf_reference import Profile, hankel_profile, pixels, points

from common.command import keep_freed_memory, run
from common.files import write_csv
from psf import Layers, Microscope, psf_model, synthesize_with_loss
from psf.microscope import SamplingWarning

# A water lens without mismatch, and an oil lens over water.
WATER, OIL = Layers(1.33, n_coverslip=1.33, n_sample=1.33), Layers(1.515, n_sample=1.33)
NOLL_6 = ((2, 2),)  # a mode that turns with the angle, at 0: it selects the method for any pupil


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    out: Path = Path("results/benchmark_psf_synthesis.csv")  # table of rates
    agreement: Path = Path("results/agreement_psf_synthesis.csv")  # table of errors
    rounds: int = 9  # measurements of each program, taken in turn
    seconds: float = 0.3  # per measurement, at least one call


def defocus_scene() -> Scene:
    """The timed task: a 20x lens in water, 6.5 um camera pixels."""
    microscope = Microscope(0.45, 0.5, 0.325, 1.33)
    return Scene(microscope, WATER, 0.0, np.linspace(-20, 20, 64), 127)


def oil_scene(depth_um: float) -> Scene:
    """An oil lens with a particle in water; steps of whole nm on every program's axis."""
    microscope = Microscope(1.2, 0.55, 0.1, 1.33)
    return Scene(microscope, OIL, depth_um, np.linspace(-2.66, 2.66, 10), 63)


def profile(scene: Scene, z_um: float) -> Profile:
    """Radial profile of unit energy: Li, Xue & Blu, JOSA A 34, 1029 (2017), Eq. (3)."""
    n_i, n_s, scope = scene.layers.n_immersion, scene.layers.n_sample, scene.microscope
    moved = z_um - n_i * scene.depth_um / n_s  # of the immersion, from its design

    def path(rho: float) -> float:
        sine2 = (scope.na * rho) ** 2
        return scene.depth_um * np.sqrt(n_s**2 - sine2) + moved * np.sqrt(n_i**2 - sine2)

    piston = path(0)
    cutoff = scope.cutoff_cycles_per_pixel
    return hankel_profile(lambda rho: (piston - path(rho)) / scope.wavelength_um, cutoff)


def vectorial_profile(scene: Scene, z_um: float) -> Profile:
    """|I_0|^2 + 2 |I_1|^2 + |I_2|^2 of Richards & Wolf, Proc. R. Soc. A 253, 358 (1959).

    It has unit energy: the energy of the sum is 8 pi (1 - cos(limit)) / k^2 (Parseval's theorem).
    """
    scope, index = scene.microscope, scene.layers.n_sample
    limit = np.arcsin(scope.na / index)
    node, weight = np.polynomial.legendre.leggauss(300)
    theta, wavenumber = (node + 1) / 2 * limit, 2 * np.pi * index / scope.wavelength_um
    sine, cosine = np.sin(theta), np.cos(theta)
    light = weight * limit / 2 * np.sqrt(cosine) * sine
    light = light * np.exp(1j * wavenumber * z_um * cosine)
    steps = wavenumber * scope.pixel_size_um  # radians per pixel, of a ray at 90 degrees
    energy = 8 * np.pi * (1 - np.cos(limit)) / steps**2
    factors = ((1, 1 + cosine), (2, sine), (1, 1 - cosine))

    def intensity(radii: np.ndarray) -> np.ndarray:
        v = steps * radii[:, None] * sine
        terms = (w * np.abs(jv(m, v) @ (light * f)) ** 2 for m, (w, f) in enumerate(factors))
        return sum(terms) / energy

    return intensity


def reference(scene: Scene, integrated: bool, of: Callable = profile) -> np.ndarray:
    """PSFs (N, K, K): points, or integrals over pixels."""
    if integrated:
        return np.stack([pixels(of(scene, z), scene.size, nodes=5) for z in scene.z_um])
    return np.stack([points(of(scene, z), scene.size) for z in scene.z_um])


def differences(psfs: np.ndarray, truth: np.ndarray, scaled: bool = True) -> tuple[float, float]:
    """Largest difference over the peak of the same PSF, and over the brightest peak."""
    psfs = np.asarray(psfs, np.float64)
    if scaled:
        psfs = psfs * ((psfs * truth).sum((1, 2)) / (psfs**2).sum((1, 2)))[:, None, None]
    difference, peak = np.abs(psfs - truth).max((1, 2)), truth.max((1, 2))
    return float((difference / peak).max()), float(difference.max() / peak.max())


def synthesis(
    scene: Scene,
    integrated: bool = False,
    dtype: torch.dtype = torch.float32,
    modes: tuple = (),
    light: str = "scalar",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Our PSFs of unit sum, and the energy outside the grid."""
    layers, depth = scene.layers, scene.depth_um
    model = psf_model("gibson_lanni", layers=layers, depth_um=depth, modes=modes, light=light)
    labels = torch.zeros(len(scene.z_um), 1 + len(modes), dtype=dtype)
    labels[:, 0] = torch.from_numpy(scene.z_um)
    return synthesize_with_loss(model, labels, scene.microscope, scene.size, integrated)


def ours(*args: Any, **kwargs: Any) -> np.ndarray:
    """Our PSFs, of unit energy in the whole plane; arguments of `synthesis`."""
    psfs, lost = synthesis(*args, **kwargs)
    return (psfs * (1 - lost)[:, None, None]).numpy()


def available() -> set[str]:
    """Packages of `PEERS` that can be imported; prints how to install the others."""
    found = set()
    for package, install in INSTALL.items():
        try:
            with warnings.catch_warnings(action="ignore"):  # of their own dependencies
                importlib.import_module(package)
        except ImportError as error:
            print(f"not installed: {package} (pip install {install}): {error}")
        else:
            found.add(package)
    return found


def median_rates(
    work: dict[str, Callable[[], Any]], count: int, config: Config
) -> dict[str, float]:
    """PSFs per second of each program; they run in turn, so that a busy machine slows all alike."""
    calls, rates = {}, {name: [] for name in work}
    for name, call in work.items():
        call()
        started = time.perf_counter()
        call()
        calls[name] = 1 + int(config.seconds / (time.perf_counter() - started))
    for _ in range(config.rounds):
        for name, call in work.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                call()
            rates[name].append(count * calls[name] / (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in rates.items()}


def speed_table(found: set[str], config: Config) -> pd.DataFrame:
    """Rate, errors and our speed over theirs, for every program in plain defocus."""
    scene = defocus_scene()
    half = replace(scene, z_um=scene.z_um[:32])
    truth = {}
    for integrated in (False, True):
        stack = reference(half, integrated)
        truth[integrated] = np.concatenate([stack, stack[::-1]])  # plain defocus is even in z
    general = "ours, any pupil, points"
    settings = {
        "ours, points": {},
        "ours, points, float64": {"dtype": torch.float64},
        "ours, pixels": {"integrated": True},
        general: {"modes": NOLL_6},
    }
    peers = {name: peer for name, peer in PEERS.items() if peer.package in found}
    work = {name: partial(synthesis, scene, **more) for name, more in settings.items()}
    work |= {name: partial(peer.psfs, scene) for name, peer in peers.items()}
    rates = median_rates(work, len(scene.z_um), config)
    rows = []
    for name in work:
        if name in peers:
            integrated, psfs = peers[name].pixels, peers[name].psfs(scene)
        else:
            integrated, psfs = name == "ours, pixels", ours(scene, **settings[name])
        own_peak, brightest = differences(psfs, truth[integrated], scaled=name in peers)
        same_kind = rates["ours, pixels" if integrated else "ours, points"]
        rows.append(
            {
                "program": name,
                "kind": "pixels" if integrated else "points",
                "psf_per_second": rates[name],
                "error_of_own_peak": own_peak,
                "error_of_brightest_peak": brightest,
                "our_speed_over_it": same_kind / rates[name],
                "our_speed_any_pupil_over_it": rates[general] / rates[name],
            }
        )
    return pd.DataFrame(rows)


def agreement_row(
    task: str, program: str, psfs: np.ndarray, truth: np.ndarray, scaled: bool = True, **more: Any
) -> dict[str, Any]:
    """One row of the table: errors of a stack of PSFs, and further columns."""
    errors = differences(psfs, truth, scaled)
    names = ("error_of_own_peak", "error_of_brightest_peak")
    return {"task": task, "program": program, **dict(zip(names, errors, strict=True)), **more}


def layer_rows(found: set[str]) -> Iterator[dict[str, Any]]:
    """Agreement under a layer mismatch, and where each program has its best focus."""
    for depth in (0.0, 5.0, 10.0):
        scene, task = oil_scene(depth), f"oil to water, depth {depth:g} um"
        truth = {integrated: reference(scene, integrated) for integrated in (False, True)}
        fine = replace(scene, z_um=np.linspace(-2.66, 2.66, 101), size=3)
        best = fine.z_um[ours(fine)[:, 1, 1].argmax()]
        for integrated, name in ((False, "ours, points"), (True, "ours, pixels")):
            psfs = ours(scene, integrated)
            yield agreement_row(task, name, psfs, truth[integrated], False, best_focus_um=best)
        for name, peer in PEERS.items():
            if peer.package in found and peer.own_z_um is not None:
                best = peer.own_z_um(fine)[peer.psfs(fine)[:, 1, 1].argmax()]
                psfs = peer.psfs(scene)
                yield agreement_row(task, name, psfs, truth[peer.pixels], best_focus_um=best)


def vectorial_rows(found: set[str]) -> Iterator[dict[str, Any]]:
    """Agreement in vectorial light; circular polarisation into psf-generator is unpolarised."""
    scope, layers = Microscope(1.3, 0.6, 0.05, 1.515), Layers(1.515, n_sample=1.515)
    scene, task = Scene(scope, layers, 0.0, np.linspace(-1, 1, 5), 63), "vectorial, NA 1.3 in oil"
    truth = {kind: reference(scene, kind, vectorial_profile) for kind in (False, True)}
    mine = ours(scene, light="vectorial")
    yield agreement_row(task, "ours, points", mine, truth[False], scaled=False)
    if "psf_generator" in found:
        light = {"e0x": 1.0, "e0y": 1j, "apod_factor": True}
        for kind, pupil in (("Spherical", 257), ("Cartesian", 1025)):
            name = f"psf-generator, {kind} {pupil}"
            theirs = psf_peers.psf_generator(scene, f"Vectorial{kind}Propagator", pupil, **light)
            yield agreement_row(task, name, theirs, truth[False])
            yield agreement_row(task, f"{name}, against ours", theirs, mine)
    if "psfmodels" in found:
        theirs = psf_peers.psfmodels(scene, 3, "vectorial")
        yield agreement_row(task, "psfmodels, 3 x 3 sub-pixels", theirs, truth[True])


def fault_rows(found: set[str]) -> Iterator[dict[str, Any]]:
    """Errors that no choice of convention explains."""
    if "psf_generator" in found:
        scope = replace(oil_scene(0.0).microscope, pixel_size_um=0.01)
        scene = Scene(scope, OIL, 0.0, np.zeros(1), 101)
        truth = reference(scene, False)
        theirs = psf_peers.psf_generator(scene, pupil=1025, mend_radius=False, **BESSEL)
        for name, psfs in (("reference", truth), ("psf-generator, radius as given", theirs)):
            ring = 0.01 * (np.diff(psfs[0, 50, 50:]) > 0).argmax()
            yield agreement_row("oil to water", name, psfs, truth, first_dark_ring_um=ring)
    if "psfmodels" in found:
        task, name, scene = "plain defocus", "psfmodels, points", defocus_scene()
        truth, theirs = reference(scene, False), psf_peers.psfmodels(scene, 1)
        row, diagonal = (np.s_[:, None, 63], np.s_[:, None, range(127), range(127)])
        yield agreement_row(task, f"{name}, middle row", theirs[row], truth[row])
        yield agreement_row(task, f"{name}, diagonal", theirs[diagonal], truth[diagonal])
        even = psf_peers.psfmodels(replace(scene, size=126), 1)
        turned, name = even[:, ::-1, ::-1], f"{name}, 126 x 126 against its half turn"
        yield agreement_row(task, name, turned, even, scaled=False)


def main(config: Config) -> None:
    """Measure rates and errors, print and write them."""
    torch.set_num_threads(1)
    keep_freed_memory()
    # The 6.5 um camera pixels at 20x are coarser than Nyquist on purpose, as in many real setups.
    warnings.simplefilter("ignore", SamplingWarning)
    found = available()
    speed = speed_table(found, config)
    parts = (layer_rows, vectorial_rows, fault_rows)
    agreement = pd.DataFrame([row for part in parts for row in part(found)])
    for table, path in ((speed, config.out), (agreement, config.agreement)):
        write_csv(path, table)
        print(table.to_string(index=False, na_rep="", float_format=lambda v: f"{v:.3g}"))
        print(f"wrote {path}")


if __name__ == "__main__":
    run(Config, main, __doc__)
