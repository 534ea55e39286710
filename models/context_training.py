"""Images as a fixed encoder sees them, for the training of the network that sees them whole."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from common.files import whole_file
from models.context import facts_of
from models.data import Exposure, normalise
from models.estimator import Estimator
from models.loss import Scaler
from models.networks import exact_float32
from psf.microscope import cutoff_cycles_per_pixel
from psf.noise import fast_poisson_noise, gaussian_noise
from simulation.bank import Bank
from simulation.images import Images, draw_images
from simulation.settings import Simulation
from simulation.sources import Source, load_sources, procedural_sources
from simulation.stream import training_sources

# Planes and places of the images of a draw: images, and focal stacks. A training step sees a random
# number of the places.
SIZES = ((1, 4), (1, 9), (1, 16), (1, 36), (1, 64), (1, 160), (5, 5), (9, 12), (20, 8))
PER_DRAW = 256  # patches that are simulated together, about
EXPOSURES = 3  # of each simulated image, since the simulation takes most of the time
SOURCE_PX = 1024  # edge of the procedural images, so that an image has places far from each other
SOURCES_PER_KIND = 12  # procedural images of each kind
ROWS = 1408  # of the bank: all tiles of these images, 0.7 GiB
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Seen:
    """Images as the encoder sees them: B images of K planes and M places."""

    features: torch.Tensor  # (B, K, M, F)
    facts: torch.Tensor  # (B, K, M, 2), see `facts_of`
    places: torch.Tensor  # (B, M, 2)
    targets: torch.Tensor  # (B K M, P) in standard units
    has_content: torch.Tensor  # (B K M,) bool


def image_sources(folder: Path, config: dict[str, Any], crop_px: int, split: str) -> list[Source]:
    """Source images of a split: those of the data folder, and larger procedural ones."""
    if split == "train":
        sources = training_sources(folder, config, crop_px)
    else:  # the data folder keeps no hashes of these
        every, _ = load_sources(config["images"], crop_px, config["seed"])
        sources = [source for source in every if source.name in config["source_images"][split]]
    kept = [source for source in sources if source.kind != "procedural"]
    if len(kept) == len(sources):
        return kept
    count = SOURCES_PER_KIND if split == "train" else SOURCES_PER_KIND // 4
    # other seeds than those of the data folder, whose images are smaller
    seed = config["seed"] + 1000 * (1 + SPLITS.index(split))
    return kept + procedural_sources(count, SOURCE_PX, seed)


def expose_images(images: torch.Tensor, exposure: Exposure, rng: np.random.Generator):
    """Recorded images (B, K, M, H, W): one light and read noise each."""
    count, device = len(images), images.device
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    photons = np.exp(rng.uniform(*np.log(exposure.photons), count))
    read_noise = rng.uniform(*exposure.read_noise_e, count)
    clean = rng.random(count) < exposure.noise_free + exposure.eight_bit / 2
    return record_images(images, photons, read_noise, clean, generator)


def record_images(
    images: torch.Tensor,
    photons: np.ndarray,
    read_noise_e: np.ndarray,
    clean: np.ndarray,
    generator: torch.Generator,
) -> torch.Tensor:
    """Images (B, K, M, H, W) with mean photons (B,) per pixel, but those that are `clean`."""

    def column(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.float32(values)).to(images.device).view(-1, 1, 1, 1, 1)

    mean = images.mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-12)
    expected = images / mean * column(np.minimum(photons, 1e9))
    flat = fast_poisson_noise(expected, generator).flatten(1)
    noise = torch.from_numpy(np.float32(read_noise_e)).to(images.device)
    noisy = gaussian_noise(flat, noise, generator).view_as(images)
    return torch.where(column(clean) > 0, images, noisy)


def encode(estimator: Estimator, images: Images, recorded: torch.Tensor, scaler: Scaler) -> Seen:
    """Images (B, K, M, H, W) as the encoder sees them."""
    shape, edge = recorded.shape[:3], recorded.shape[-1]
    patches = recorded.reshape(-1, edge, edge)
    na, wavelength_um, pixel_um, _ = images.optics.unbind(1)
    cutoff = cutoff_cycles_per_pixel(na, wavelength_um, pixel_um)
    cutoff = cutoff.repeat_interleave(shape[1] * shape[2])
    features, facts = [], []
    with torch.inference_mode(), exact_float32(patches.device):
        for part, its_cutoff in zip(patches.split(64), cutoff.split(64), strict=True):
            batch = normalise(part)
            features.append(estimator.fast_network.features(batch, its_cutoff))
            facts.append(facts_of(part, batch))
    return Seen(
        features=torch.cat(features).unflatten(0, shape).clone(),
        facts=torch.cat(facts).unflatten(0, shape).clone(),
        places=images.places,
        targets=scaler.scale(images.labels.flatten(0, 2)),
        has_content=images.has_content.flatten(),
    )


class ImageStream:
    """Endless images as the encoder sees them; those of a draw depend on its number only."""

    def __init__(
        self,
        estimator: Estimator,
        simulation: Simulation,
        sources: list[Source],
        exposure: Exposure,
        seed: int,
    ) -> None:
        self.estimator, self.exposure, self.seed = estimator, exposure, seed
        # an image has one focus at each place; a change within a patch takes long to simulate
        self.simulation = replace(simulation, focus_change_waves=0.0, beyond_fraction=0.0)
        sizes = self.simulation.crop_size, self.simulation.patch_size
        self.bank = Bank(sources, *sizes, estimator.device, ROWS)
        self.scaler = Scaler.from_ranges(estimator.config["label_ranges"]).to(estimator.device)

    def images(self, number: int, sizes: tuple[int, int] | None = None) -> Images:
        """Simulated images of one draw."""
        rng = np.random.default_rng([self.seed, number])
        planes, places = sizes or SIZES[rng.integers(len(SIZES))]
        count = max(1, PER_DRAW // (planes * places))
        return draw_images(self.simulation, self.bank, count, places, planes, rng)

    def seen(self, number: int, images: Images) -> list[Seen]:
        """The images of a draw, exposed several times, as the encoder sees them."""
        found = []
        for exposure in range(EXPOSURES):
            rng = np.random.default_rng([self.seed, number, 1 + exposure])
            recorded = expose_images(images.blurred, self.exposure, rng)
            found.append(encode(self.estimator, images, recorded, self.scaler))
        return found


def write_features(stream: ImageStream, folder: Path, draws: int) -> None:
    """Simulate and encode images, one file for each draw; files that are there stay.

    Drawing changes the bank of source images, so one thread does it, one draw ahead.
    """
    missing = [number for number in range(draws) if not feature_path(folder, number).is_file()]
    bar = tqdm(total=draws, initial=draws - len(missing), unit="draw", desc="images", mininterval=5)
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as ahead, bar:
        pending = [ahead.submit(stream.images, number) for number in missing[:1]]
        for number, following in zip(missing, [*missing[1:], None], strict=False):
            images = pending.pop().result()
            if following is not None:
                pending.append(ahead.submit(stream.images, following))
            tensors = {
                f"{name}/{exposure}": value.clone()
                for exposure, seen in enumerate(stream.seen(number, images))
                for name, value in vars(seen).items()
            }
            with whole_file(feature_path(folder, number)) as partial:
                partial.write_bytes(save(tensors))
            bar.update()


def feature_path(folder: Path, number: int) -> Path:
    """File of the features of a draw."""
    return folder / f"{number:05d}.safetensors"


def read_features(folder: Path, draws: int, device: torch.device) -> list[Seen]:
    """All images of `write_features` on a device, each exposure by itself."""
    found = []
    for number in range(draws):
        tensors = load_file(feature_path(folder, number), str(device))
        for exposure in range(EXPOSURES):
            names = [field.name for field in fields(Seen)]
            found.append(Seen(*(tensors[f"{name}/{exposure}"] for name in names)))
    return found


def some_places(seen: Seen, rng: np.random.Generator) -> Seen:
    """The images with a random number of their places, so that the network knows small ones."""
    count = seen.features.shape[2]
    kept = torch.from_numpy(np.sort(rng.permutation(count)[: rng.integers(1, count + 1)]))
    shape = seen.features.shape[:3]
    return Seen(
        seen.features[:, :, kept],
        seen.facts[:, :, kept],
        seen.places[:, kept],
        seen.targets.unflatten(0, shape)[:, :, kept].flatten(0, 2),
        seen.has_content.unflatten(0, shape)[:, :, kept].flatten(),
    )
