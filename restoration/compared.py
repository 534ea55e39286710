"""The methods that the restoration experiment compares, ours and others.

Each takes a `Trial` and a setting. What a result depends on is hashed: the image, the map, the
setting and the code of the method. So a change of our code leaves the results of the others valid.
"""

import hashlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.code import imported_files
from common.files import code_fingerprint
from models.checkpoint import load_estimator
from models.map_image import smooth_parameters
from models.mapping import PsfMap, predict_map
from psf.microscope import Microscope
from restoration import peers, rivals
from restoration.blur_map import blur_of_map, continue_to_borders
from restoration.learned import SHIPPED
from restoration.scenes import Scene, mean_psf
from restoration.scores import snr_db
from restoration.variant_blur import VariantBlur
from restoration.with_map import restore_with_map

ROOT = Path(__file__).parents[1]
# networks for maps of these PSF models; for others, the network of the model's own name
NETWORKS = {"zernike1d": "zernike1d_tilted", "zernike2d": "zernike2d_tilted"}
STRIDE = 32  # px between the patches of an estimated map, as estimate_psf_map.py has by default


@dataclass(frozen=True)
class Trial:
    """What a method may use: the image, the estimated map and, for oracles, the truth."""

    scene: Scene
    psf_map: PsfMap  # estimated
    blur: VariantBlur  # of the estimated map

    @property
    def image(self) -> torch.Tensor:
        """Image (H, W) to restore, photons."""
        return self.scene.image

    def of_second_exposure(self) -> "Trial":
        """The same with the second exposure as the image, and the map of the first."""
        return replace(self, scene=replace(self.scene, image=self.scene.second))


@dataclass(frozen=True)
class Method:
    """A restoration, its settings and its code."""

    restore: Callable[[Trial, Any], torch.Tensor]  # a function with a name: its text is hashed
    code: tuple[str, ...] = ()  # modules of this project that it calls
    settings: tuple[float, ...] = ()  # tried on the validation split
    setting: str = ""  # what they are
    # images of several settings in less time than one by one
    several: Callable[[Trial, Sequence[float]], list[torch.Tensor]] | None = None
    packages: tuple[str, ...] = ()  # other programs that it calls
    uses_map: bool = False  # the estimated one
    twice: bool = True  # restore the second exposure too
    shown: bool = False  # keep the image for the figure
    slow: bool = False  # left out unless it is asked for


def trial_of(scene: Scene) -> Trial:
    """The scene with the map that the shipped network of its PSF model estimates."""
    estimator = load_estimator(network_of(scene.labels.model.name))
    raw = predict_map(estimator, scene.image, Microscope(), STRIDE)
    _, smooth = smooth_parameters(raw, estimator.patch_size / STRIDE, "auto")
    strengths = [one.strength for one in smooth]
    psf_map = continue_to_borders(raw, strengths, estimator.patch_size, scene.blur.shape)
    return Trial(scene, psf_map, blur_of_map(psf_map, scene.blur.shape))


def network_of(model: str) -> str:
    """Name of the shipped network that maps a PSF model."""
    return NETWORKS.get(model, model)


def trial_key(method: Method, trial: Trial) -> dict[str, str]:
    """Hashes of the numbers that a method is given: the scene, and the estimated map if used."""
    scene, psf_map = trial.scene, trial.psf_map
    tensors = [scene.image, scene.second, scene.truth, scene.sharp, *_numbers(scene.labels)]
    tensors += [scene.blur.eigen_psfs, scene.blur.coefficients]
    found = {"scene": _hash(tensors)}
    if method.uses_map:
        blur = trial.blur
        found["map"] = _hash([*_numbers(psf_map), blur.eigen_psfs, blur.coefficients])
    return found


def _numbers(psf_map: PsfMap) -> list[torch.Tensor]:
    return [psf_map.values, psf_map.standard_deviations, psf_map.content]


def _hash(tensors: Sequence[torch.Tensor]) -> str:
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def method_key(method: Method, setting: float | None) -> dict[str, Any]:
    """What decides the result of a method, other than the trial."""
    learned = sorted(SHIPPED.rglob("*")) if method.code == _OURS else []
    weights = b"".join(path.read_bytes() for path in learned if path.is_file())
    return {
        "setting": setting,
        "function": hashlib.sha256(function_text(method.restore).encode()).hexdigest(),
        "code": _code_hash(method.code),
        "weights": hashlib.sha256(weights).hexdigest(),
        "packages": {name: version(name) for name in method.packages},
        "twice": method.twice,
    }


def function_text(function: Callable) -> str:
    """Source of a function of this file, and of those of this file that it names."""
    named = [globals().get(name) for name in function.__code__.co_names]
    functions = [f for f in (function, *named) if inspect.isfunction(f)]
    return "".join(inspect.getsource(f) for f in functions if f.__module__ == function.__module__)


@cache
def _code_hash(modules: tuple[str, ...]) -> str:
    """Hash of modules of this project and all that they import."""
    return code_fingerprint(*imported_files(ROOT, *modules))


def blurred_input(trial: Trial, _: None) -> torch.Tensor:
    """The image itself."""
    return trial.image


def skimage_mean_psf(trial: Trial, iterations: float) -> torch.Tensor:
    """scikit-image's Richardson-Lucy with one PSF for the whole field."""
    return peers.skimage_richardson_lucy(trial.image, mean_psf(trial.scene), round(iterations))


def skimage_wiener(trial: Trial, _: None) -> torch.Tensor:
    """scikit-image's unsupervised Wiener filter with one PSF for the whole field."""
    return peers.skimage_wiener(trial.image, mean_psf(trial.scene))


def blind_richardson_lucy(trial: Trial, steps: float) -> torch.Tensor:
    """Blind Richardson-Lucy after a number of steps on the PSF and as many on the image.

    They take turns: five on the one, five on the other.
    """
    rounds, rest = divmod(round(steps), 5)
    shape = (rounds, 5) if rounds else (1, rest)
    return rivals.blind_richardson_lucy(trial.image, *shape)[0]


def blind_total_variation(trial: Trial, share: float) -> torch.Tensor:
    """Blind total variation; its weight is `share` / sqrt(mean photons)."""
    weight = share / float(trial.image.mean()) ** 0.5
    return rivals.blind_total_variation(trial.image, weight)[0]


def oracle_richardson_lucy(trial: Trial, _: None) -> torch.Tensor:
    """Blind Richardson-Lucy with the number of steps that suits the truth."""
    return best_by_truth(trial, blind_richardson_lucy, (2, 5, 15, 50))


def oracle_total_variation(trial: Trial, _: None) -> torch.Tensor:
    """Blind total variation with the weight that suits the truth."""
    return best_by_truth(trial, blind_total_variation, (0.1, 0.3, 0.8))


def scheme_2018(trial: Trial, iterations: float) -> torch.Tensor:
    """Richardson-Lucy of 2018, with weights on the blurred image."""
    return rivals.weights_after_blur(trial.image, trial.blur, round(iterations))


def deepinv_richardson_lucy(trial: Trial, iterations: float) -> torch.Tensor:
    """Deepinv's Richardson-Lucy on our eigen-PSFs."""
    blur = trial.blur
    count = round(iterations)
    return peers.deepinv_richardson_lucy(trial.image, blur.eigen_psfs, blur.weights, count)


def deepinv_counts(trial: Trial, counts: Sequence[float]) -> list[torch.Tensor]:
    """The same after several numbers of iterations."""
    blur = trial.blur
    steps = peers.deepinv_richardson_lucy_steps(trial.image, blur.eigen_psfs, blur.weights)
    first = itertools.islice(steps, round(max(counts)))
    return [found for n, found in enumerate(first, start=1) if n in counts]


def deepinv_plug_and_play(trial: Trial, share: float) -> torch.Tensor:
    """Deepinv's plug-and-play scheme on our eigen-PSFs; its strength is `share` / sqrt(photons)."""
    blur, strength = trial.blur, share / float(trial.image.mean()) ** 0.5
    return peers.deepinv_plug_and_play(trial.image, blur.eigen_psfs, blur.weights, strength)


def ours(trial: Trial, _: None) -> torch.Tensor:
    """Our restoration with the estimated map."""
    return restore_with_map(trial.image, trial.psf_map)[0].image


def ours_total_variation(trial: Trial, _: None) -> torch.Tensor:
    """Our restoration with the estimated map and total variation as its prior."""
    return restore_with_map(trial.image, trial.psf_map, prior="tv")[0].image


def ours_true_map(trial: Trial, _: None) -> torch.Tensor:
    """Our restoration with the true map."""
    return restore_with_map(trial.image, trial.scene.labels, refined=False)[0].image


def best_by_truth(
    trial: Trial, method: Callable[[Trial, float], torch.Tensor], settings: Sequence[float]
) -> torch.Tensor:
    """Restoration by the setting that gives the highest SNR."""
    found = [method(trial, setting) for setting in settings]
    return max(found, key=lambda image: snr_db(image, trial.scene.truth))


INPUT, OURS, ORACLE = "blurred input", "ours, estimated map", "ours, true map"
OURS_TV = "ours, total variation, estimated map"
BLIND = ("blind Richardson-Lucy", "blind total variation")
BLIND_BEST = tuple(f"{name}, best setting (oracle)" for name in BLIND)
DEEPINV = "deepinv Richardson-Lucy, estimated map"
DEEPINV_PNP = "deepinv plug-and-play, estimated map"
SCHEME_2018 = "weights on the blurred image (2018), estimated map"
SINGLE = "scikit-image Richardson-Lucy, mean of the true PSFs"
WIENER = "scikit-image unsupervised Wiener, mean of the true PSFs"

_RIVALS, _PEERS, _OURS = ("restoration.rivals",), ("restoration.peers",), ("restoration.with_map",)
_SKIMAGE, _DEEPINV = ("scikit-image",), ("deepinv",)
# The settings are tried on the validation split; all gains are in
# results/deconvolution_settings.csv. Slow methods and oracles restore one exposure only.
METHODS = {
    INPUT: Method(blurred_input, shown=True),
    SINGLE: Method(
        skimage_mean_psf, _PEERS, (1, 3, 10, 30), "iterations", packages=_SKIMAGE, twice=False
    ),
    WIENER: Method(skimage_wiener, _PEERS, packages=_SKIMAGE, twice=False),
    BLIND[0]: Method(blind_richardson_lucy, _RIVALS, (1, 2, 3, 5, 10, 15, 50), "steps", shown=True),
    BLIND[1]: Method(
        blind_total_variation,
        _RIVALS,
        (0.03, 0.1, 0.2, 0.3, 0.5, 0.8, 1.5),
        "weight times sqrt(photons)",
        shown=True,
    ),
    BLIND_BEST[0]: Method(oracle_richardson_lucy, _RIVALS, twice=False, slow=True),
    BLIND_BEST[1]: Method(oracle_total_variation, _RIVALS, twice=False, slow=True),
    SCHEME_2018: Method(
        scheme_2018, _RIVALS, (2, 5, 10, 20, 40), "iterations", uses_map=True, twice=False
    ),
    DEEPINV: Method(
        deepinv_richardson_lucy,
        _PEERS,
        (5, 10, 20, 40, 80),
        "iterations",
        deepinv_counts,
        packages=_DEEPINV,
        uses_map=True,
        twice=False,
        shown=True,
    ),
    DEEPINV_PNP: Method(
        deepinv_plug_and_play,
        _PEERS,
        (0.1, 0.3, 1.0),
        "strength times sqrt(photons)",
        packages=_DEEPINV,
        uses_map=True,
        twice=False,
        slow=True,
    ),
    OURS: Method(ours, _OURS, uses_map=True, twice=False, shown=True),
    ORACLE: Method(ours_true_map, _OURS, shown=True, twice=False),
}
if SHIPPED.exists():  # without a learned prior, ours is the restoration with total variation
    METHODS[OURS_TV] = Method(ours_total_variation, _OURS, uses_map=True, twice=False)


def installed_methods(slow: bool = True) -> dict[str, Method]:
    """The methods whose programs are installed, with or without the slow ones."""
    installed = peers.is_installed("deepinv")
    return {
        name: method
        for name, method in METHODS.items()
        if (installed or "deepinv" not in method.packages) and (slow or not method.slow)
    }
