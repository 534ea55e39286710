"""Blur by one PSF, blur by a PSF that varies over the image, and the surfaces of test objects.

All blurs return the valid region only: a pixel whose PSF reaches outside the object is cut off,
so that nothing wraps around and no border is reflected. `transfer_functions` gives the OTFs for
callers that multiply spectra themselves; the image is periodic there.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import next_fast_len

from psf.errors import InputError
from psf.microscope import Microscopes, cutoffs
from psf.model import PsfModel, psf_model
from psf.synthesis import synthesize_with_loss

# Images transformed together: on a CPU they fit the cache of a core, elsewhere they fill a GPU.
GROUP, GPU_GROUP = 8, 256
CHUNK = 16  # columns whose PSFs are in memory together
# A power of two is taken if it is at most this much longer than the shortest fast length. On a CPU
# 256 is 1.6 times as fast as 240.
MORE_FOR_POWER_OF_TWO = 1.08


def fft_length(edge: int) -> int:
    """Fast length of a real FFT that is not shorter than `edge`."""
    shortest, power = next_fast_len(edge, real=True), 1 << (edge - 1).bit_length()
    return power if power <= MORE_FOR_POWER_OF_TWO * shortest else shortest


def blur_valid(images: torch.Tensor, psfs: torch.Tensor) -> torch.Tensor:
    """Each image convolved with its PSF, on the region that no border affects.

    Parameters
    ----------
    images : (N, H, W) tensor
    psfs : (M, K, K) tensor; PSF i blurs image i % N, and a single PSF blurs every image

    Returns
    -------
    (M, H - K + 1, W - K + 1) tensor, centred where the images are centred; for a single PSF N
    images.

    Raises
    ------
    InputError
        If the PSF is larger than the image.
    """
    height, width, size = *images.shape[-2:], psfs.shape[-1]
    if size > min(height, width):
        raise InputError(f"a PSF of {size} px does not fit an image of {height} x {width} px.")
    if len(psfs) == 1:
        psfs = psfs.expand(len(images), -1, -1)
    shape = fft_length(height), fft_length(width)
    out = images.new_empty(len(psfs), height - size + 1, width - size + 1)
    step = GROUP if images.device.type == "cpu" else GPU_GROUP
    for start in range(0, len(images), step):
        spectra = _spectra(images[start : start + step], shape)
        for first in range(start, len(psfs), len(images)):
            part = _spectra(psfs[first : first + len(spectra)], shape)
            part.mul_(spectra[: len(part)])
            out[first : first + len(part)] = _valid(part, shape, (height, width), size)
    return out


def _spectra(images: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Fourier transforms of images (N, H, W) that are padded with zeros to a shape.

    (N, f_x, f_y): each line of the second transform lies in one piece, and rows that are zero are
    not transformed. Together with `_valid` this takes two thirds of the time of rfft2 and irfft2.
    """
    along_x = torch.fft.rfft(images, n=shape[1]).transpose(1, 2).contiguous()
    return torch.fft.fft(along_x, n=shape[0])


def _valid(
    spectra: torch.Tensor, shape: tuple[int, int], edges: tuple[int, int], size: int
) -> torch.Tensor:
    """Images (N, H - K + 1, W - K + 1) of spectra, without the part that PSFs of K px wrap around.

    `edges` are H and W. The FFT wraps around into the first K - 1 rows and columns.
    """
    rows = torch.fft.ifft(spectra)[:, :, size - 1 : edges[0]].transpose(1, 2).contiguous()
    return torch.fft.irfft(rows, n=shape[1])[:, :, size - 1 : edges[1]]


def chebyshev_nodes(count: int) -> np.ndarray:
    """Places in (-1, 1), falling, at which `blur_along` needs the PSF."""
    return np.cos(np.pi * (np.arange(count) + 0.5) / count)


def blur_along(images: torch.Tensor, psfs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Blur of images in which each object point has the PSF of its place on a line from -1 to 1.

    The PSF is expanded in Chebyshev polynomials T_k of the place t, h(t) = sum_k c_k T_k(t). The
    image is sum_k c_k * (T_k(t) object), with the weights before the convolution.

    Parameters
    ----------
    images : (N, H, W) tensor
    psfs : (N, M, K, K) tensor
        PSFs at the places `chebyshev_nodes(M)`.
    places : (N, H, W) tensor, from -1 to 1

    Returns
    -------
    (N, H - K + 1, W - K + 1) tensor, the valid region.
    """
    count, size = psfs.shape[1], psfs.shape[-1]
    height, width = images.shape[1:]
    shape = fft_length(height), fft_length(width)
    terms = _chebyshev_terms(count, psfs.device, psfs.dtype)
    out = images.new_empty(len(images), height - size + 1, width - size + 1)
    step = 1 if images.device.type == "cpu" else max(1, GPU_GROUP // count)
    for some in (slice(start, start + step) for start in range(0, len(images), step)):
        coefficients = torch.einsum("km,nmij->nkij", terms, psfs[some])
        weighted = images.new_empty(len(coefficients), count, height, width)
        weighted[:, 0] = images[some]
        weighted[:, 1:2] = (images[some] * places[some])[:, None]
        for k in range(2, count):  # T_k = 2 t T_(k-1) - T_(k-2)
            torch.mul(weighted[:, k - 1], 2 * places[some], out=weighted[:, k])
            weighted[:, k] -= weighted[:, k - 2]
        spectra = _spectra(weighted.flatten(0, 1), shape)
        spectra.mul_(_spectra(coefficients.flatten(0, 1), shape))
        summed = spectra.unflatten(0, (-1, count)).sum(1)
        out[some] = _valid(summed, shape, (height, width), size)
    return out


@lru_cache(maxsize=64)
def _chebyshev_terms(count: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Matrix (count, count) from values at the nodes to coefficients of T_0, T_1, ..."""
    orders = np.arange(count)[:, None]
    matrix = 2 / count * np.cos(orders * np.arccos(chebyshev_nodes(count)))
    matrix[0] /= 2
    return torch.from_numpy(matrix).to(device, dtype)


def transfer_functions(
    model: PsfModel | str,
    labels: torch.Tensor,
    microscope: Microscopes,
    shape: tuple[int, int],
) -> torch.Tensor:
    """OTFs, complex (N, H, W // 2 + 1), on the grid of `torch.fft.rfft2`.

    `torch.fft.irfft2(torch.fft.rfft2(images) * otf, s=shape)` blurs without a shift; the image is
    periodic. The value at frequency 0 is the share of light that falls within half the shape of
    its emitter. If the pixels sample the PSF at Nyquist or finer, the OTF is that of point samples
    times the pixel's sinc(fx) sinc(fy). Coarser pixels are integrated before the transform, so
    that aliasing is as in a camera.

    Parameters
    ----------
    model, labels, microscope : as for `synthesize`
    shape : height and width of the images, pixels

    Raises
    ------
    InputError
        As `synthesize`; for a shape below 2 pixels.
    """
    height, width = shape
    if min(shape) < 2:
        raise InputError(f"an image of {height} x {width} px is too small; give at least 2 x 2.")
    model = psf_model(model) if isinstance(model, str) else model
    sampled = not model.is_gaussian and float(cutoffs(microscope).max()) <= 0.5
    size = max(shape) - 1 + max(shape) % 2  # odd: centred on a pixel
    psfs, lost = synthesize_with_loss(model, labels, microscope, size, not sampled)
    psfs = psfs * (1 - lost)[:, None, None]
    middle = size // 2
    rows, columns = (slice(middle - (n - 1) // 2, middle + (n - 1) // 2 + 1) for n in shape)
    kernel = psfs.new_zeros(len(psfs), height, width)
    cropped = psfs[:, rows, columns]
    kernel[:, : cropped.shape[1], : cropped.shape[2]] = cropped
    kernel = kernel.roll((-((height - 1) // 2), -((width - 1) // 2)), (1, 2))
    otf = torch.fft.rfft2(kernel)
    if sampled:
        along_y, along_x = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
        otf = otf * (torch.sinc(along_y)[:, None] * torch.sinc(along_x)).to(psfs)
    return otf


def blur_varying(
    image: torch.Tensor, psfs: torch.Tensor, weights: torch.Tensor, chunk: int = 16
) -> torch.Tensor:
    """Spatially variant blur y = sum_i h_i * (w_i x), where each object point has one PSF.

    Parameters
    ----------
    image : (H, W) tensor
    psfs : (M, K, K) tensor
    weights : (M, H, W) tensor
        Share of PSF i at each object point; sums to 1 over i.

    chunk : PSFs that are convolved together

    Returns
    -------
    (H - K + 1, W - K + 1) tensor, the valid region.
    """
    parts = zip(psfs.split(chunk), weights.split(chunk), strict=True)
    return sum(blur_valid(image * w, h).sum(0) for h, w in parts)


def interpolation_weights(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Weights (M, H, W) that interpolate linearly between rising levels (M,) at values (H, W)."""
    if len(levels) == 1:
        return torch.ones_like(values)[None]
    upper = torch.searchsorted(levels, values.contiguous()).clamp(1, len(levels) - 1)
    share = (values - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
    share = share.clamp(0, 1)
    weights = values.new_zeros(len(levels), *values.shape)
    weights.scatter_(0, upper[None] - 1, (1 - share)[None])
    return weights.scatter_(0, upper[None], share[None])


def interpolate_grid(
    values: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
) -> torch.Tensor:
    """Values (..., R, C) of a grid, bilinearly interpolated to (..., H, W); constant outside it.

    A NaN reaches only the points between its grid point and the next ones.

    Parameters
    ----------
    rows, columns : (R,) and (C,) rising places of the grid
    y, x : (H,) and (W,) places that are asked for, in the same unit
    """
    return _interpolate_axis(_interpolate_axis(values, rows, y, -2), columns, x, -1)


def _interpolate_axis(
    values: torch.Tensor, places: torch.Tensor, targets: torch.Tensor, axis: int
) -> torch.Tensor:
    if len(places) == 1:
        return values.index_select(axis, torch.zeros_like(targets, dtype=torch.long))
    targets = targets.to(places).clamp(places[0], places[-1])
    upper = torch.searchsorted(places, targets).clamp(1, len(places) - 1)
    share = (targets - places[upper - 1]) / (places[upper] - places[upper - 1])
    share = share.to(values).reshape(-1, *[1] * (-1 - axis))
    first, second = values.index_select(axis, upper - 1), values.index_select(axis, upper)
    blend = first * (1 - share) + second * share
    # a grid point that has no share in a place must not hand it its NaN
    return torch.where(share == 0, first, torch.where(share == 1, second, blend))


def blur_by_column(
    sharp: torch.Tensor, psfs_of: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Exact blur of an object whose depth changes along x, so that each column has its own PSF.

    y = sum_x h_x * (column x of the object), computed by FFTs along the columns.

    Parameters
    ----------
    sharp : (H, W) tensor
    psfs_of : function of column indices (N,) that returns their PSFs (N, K, K), K odd

    Returns
    -------
    (H - K + 1, W - K + 1) tensor, the valid region.
    """
    height, width = sharp.shape
    size = psfs_of(torch.zeros(1, dtype=torch.long)).shape[-1]
    if size > min(height, width):
        raise InputError(f"a PSF of {size} px does not fit an object of {height} x {width} px.")
    # the FFT wraps around into the first size - 1 rows, which are cut off
    rows = next_fast_len(height, real=True)
    objects = torch.fft.rfft(sharp, n=rows, dim=0).T  # (W, F)
    blurred = objects.new_zeros(width + size - 1, objects.shape[1])
    for chunk in torch.arange(width).split(CHUNK):
        spectra = torch.fft.rfft(psfs_of(chunk).transpose(1, 2), n=rows)  # (N, K along x, F)
        spectra *= objects[chunk, None]
        for x, column in zip(chunk.tolist(), spectra, strict=True):
            blurred[x : x + size] += column
    valid = torch.fft.irfft(blurred[size - 1 : width], n=rows)[:, size - 1 : height]
    return valid.T.contiguous()


def tilted_depth_um(columns: int, degrees: float, pixel_size_um: float) -> torch.Tensor:
    """Depth (columns,) of a plane tilted about the y axis, in focus at its middle.

    The plane rises along x. A pixel is pixel_size_um wide in the image, at right angles to the
    optical axis.
    """
    if not abs(degrees) < 90:
        raise InputError(f"a plane cannot be tilted by {degrees:g} degrees; give less than 90.")
    x_um = (torch.arange(columns) - (columns - 1) / 2) * pixel_size_um
    return x_um * math.tan(math.radians(degrees))


def dome_depth_um(size: int, rim_um: float, top_um: float) -> torch.Tensor:
    """Depth (size, size) of a spherical cap: top_um in the middle, rim_um outside its rim."""
    half = (size - 1) / 2
    share = torch.linspace(-half, half, size) / (0.9 * half)
    squared = (share[:, None] ** 2 + share**2).clamp(max=1)
    # radius of the sphere: the cap is a third as high as its rim is wide, so its slope is finite
    radius = (1 + (1 / 3) ** 2) / (2 / 3)
    height = (radius**2 - squared).sqrt() - (radius - 1 / 3)
    return rim_um + (top_um - rim_um) * 3 * height
