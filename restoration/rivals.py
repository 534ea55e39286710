"""Other methods of restoration, to compare with: two blind ones and the scheme of 2018.

Blind Richardson-Lucy and blind total variation estimate one PSF for the whole field. The scheme of
Shajkofci & Liebling (ICIP 2018) takes a map of PSFs, but weights the blurred image in place of the
object. Images are photons per pixel (H, W). Borders are mirrored.
"""

import math

import torch

from psf.errors import InputError
from restoration.variant_blur import VariantBlur

BLIND_PSF = 31  # px, support of the PSF that is estimated
START_FWHM_PX = 4.0  # of the Gaussian with which the estimation begins
SMALLEST = 1e-3  # least expected image, as a share of the mean: avoids division by zero


def blind_richardson_lucy(
    image: torch.Tensor, rounds: int = 3, steps: int = 5, psf_size: int = BLIND_PSF
) -> tuple[torch.Tensor, torch.Tensor]:
    """Object (H, W) and PSF (K, K) by Richardson-Lucy steps on both in turns.

    Fish et al., JOSA A 12, 58 (1995).
    """
    field, inner = _mirrored(image, psf_size)
    objects, psf = field.clone(), _start(psf_size, field)
    smallest = SMALLEST * float(field.mean())
    for _ in range(rounds):
        spectrum = torch.fft.rfft2(objects)
        for _ in range(steps):
            ratio = field / _convolve(spectrum, psf, field.shape).clamp(min=smallest)
            factor = _correlate_small(spectrum, ratio, psf_size) / objects.sum()
            psf = (psf * factor).clamp(min=0)
            psf = psf / psf.sum()
        transfer = _transfer(psf, field.shape)
        for _ in range(steps):
            expected = torch.fft.irfft2(torch.fft.rfft2(objects) * transfer, s=field.shape)
            ratio = torch.fft.rfft2(field / expected.clamp(min=smallest))
            objects = objects * torch.fft.irfft2(ratio * transfer.conj(), s=field.shape).clamp(0)
    return objects[inner], psf


def blind_total_variation(
    image: torch.Tensor, weight: float | None = None, rounds: int = 12, psf_size: int = BLIND_PSF
) -> tuple[torch.Tensor, torch.Tensor]:
    """Object (H, W) and PSF (K, K) by least squares on both in turns.

    After Chan & Wong (IEEE TIP 7, 370 (1998)), with total variation on the object. As by Cho & Lee
    (ACM Trans. Graph. 28, 145 (2009)) the PSF is fitted to gradients of the object after a shock
    filter; otherwise it would shrink to a point. The PSF stays positive. The weight of total
    variation, for an image of mean 1, falls from round to round to its last value, by default
    0.3 / sqrt(mean photons).
    """
    mean = float(image.mean())
    last = 0.3 / math.sqrt(mean) if weight is None else weight
    field, inner = _mirrored(image / mean, psf_size)
    psf = _start(psf_size, field)
    gradients = _gradient_transfers(field)
    objects = field
    for step in range(rounds):
        transfer = _transfer(psf, field.shape)
        weight_now = last * 4 ** (1 - step / (rounds - 1))
        objects = _tv_deconvolve(field, transfer, gradients, weight_now)
        psf = _fit_psf(_shock(objects), field, gradients, psf_size)
    transfer = _transfer(psf, field.shape)
    objects = _tv_deconvolve(field, transfer, gradients, last)
    return objects[inner].clamp(min=0) * mean, psf


def weights_after_blur(
    image: torch.Tensor, blur: VariantBlur, iterations: int = 20, weight: float = 2e-3
) -> torch.Tensor:
    """Object (H, W) by the scheme of Shajkofci & Liebling (ICIP 2018).

    Written from its description. The model is y = sum_i w_i (h_i * x): image points have a PSF, not
    object points. A step divides by 1 - weight * (sign of the gradient along y + sign along x), in
    place of the curvature of total variation.
    """
    size = blur.psf_size
    if size > min(image.shape):
        raise InputError(f"a PSF of {size} px does not fit an image of {tuple(image.shape)} px.")
    margin = size // 2
    field, inner = _mirrored(image, size)
    widened = blur.window(-margin, -margin, tuple(field.shape))
    weights = widened.weights[:, : field.shape[0], : field.shape[1]]
    transfers = [_transfer(psf, field.shape) for psf in blur.eigen_psfs]
    objects = torch.full_like(field, float(field.mean()))
    smallest = SMALLEST * float(field.mean())

    def back(residual: torch.Tensor) -> torch.Tensor:
        parts = zip(weights, transfers, strict=True)
        spectra = sum(torch.fft.rfft2(residual * w) * t.conj() for w, t in parts)
        return torch.fft.irfft2(spectra, s=field.shape)

    seen = back(torch.ones_like(field)).clamp(min=SMALLEST)
    for _ in range(iterations):
        spectrum = torch.fft.rfft2(objects)
        parts = zip(weights, transfers, strict=True)
        expected = sum(w * torch.fft.irfft2(spectrum * t, s=field.shape) for w, t in parts)
        factor = back(field / expected.clamp(min=smallest)).clamp(min=0) / seen
        gradient = sum(torch.sign(objects - objects.roll(1, axis)) for axis in (0, 1))
        objects = objects * factor / (1 - weight * gradient)
    return objects[inner]


def _mirrored(image: torch.Tensor, size: int) -> tuple[torch.Tensor, tuple[slice, slice]]:
    """The image (H, W) with half a PSF mirrored on each side, and its place in the result."""
    margin = size // 2
    padded = torch.nn.functional.pad(image[None, None], [margin] * 4, mode="reflect")[0, 0]
    inner = tuple(slice(margin, margin + edge) for edge in image.shape)
    return padded, (inner[0], inner[1])


def _start(size: int, like: torch.Tensor) -> torch.Tensor:
    """Gaussian PSF (K, K) with which a blind estimation begins."""
    line = torch.arange(size).to(like) - size // 2
    profile = torch.exp(-4 * math.log(2) * (line / START_FWHM_PX) ** 2)
    psf = profile[:, None] * profile
    return psf / psf.sum()


def _transfer(psf: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Transfer function (H, W // 2 + 1) of a PSF (K, K) that is centred on the origin."""
    size = psf.shape[-1]
    padded = psf.new_zeros(shape)
    padded[:size, :size] = psf
    return torch.fft.rfft2(padded.roll((-(size // 2), -(size // 2)), (0, 1)))


def _convolve(spectrum: torch.Tensor, psf: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return torch.fft.irfft2(spectrum * _transfer(psf, shape), s=shape)


def _correlate_small(spectrum: torch.Tensor, image: torch.Tensor, size: int) -> torch.Tensor:
    """Middle (K, K) of the correlation of an image with the object that has this spectrum."""
    full = torch.fft.irfft2(spectrum.conj() * torch.fft.rfft2(image), s=image.shape)
    return full.roll((size // 2, size // 2), (0, 1))[:size, :size]


def _gradient_transfers(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Transfer functions of the forward differences along y and x."""
    found = []
    for axis in (0, 1):
        impulse = torch.zeros_like(field)
        impulse[0, 0] = -1
        impulse[(-1, 0) if axis == 0 else (0, -1)] = 1
        found.append(torch.fft.rfft2(impulse))
    return found[0], found[1]


def _tv_deconvolve(
    field: torch.Tensor,
    transfer: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor],
    weight: float,
    steps: int = 12,
) -> torch.Tensor:
    """Minimum x of |h * x - y|^2 / 2 + weight TV(x), by the method of Wang et al. (2008)."""
    coupling = 20 * weight  # changes the speed of convergence, not the minimum
    data = transfer.conj() * torch.fft.rfft2(field)
    smooth = sum(g.abs().square() for g in gradients)
    inverse = 1 / (transfer.abs().square() + coupling * smooth + 1e-8)
    objects = field
    duals = [torch.zeros_like(field) for _ in gradients]
    for _ in range(steps):
        spectrum = torch.fft.rfft2(objects)
        slopes = [
            torch.fft.irfft2(spectrum * g, s=field.shape) + d
            for g, d in zip(gradients, duals, strict=True)
        ]
        length = sum(s.square() for s in slopes).sqrt()
        shrink = (length - weight / coupling).clamp(min=0) / length.clamp(min=1e-9)
        kept = [s * shrink for s in slopes]
        duals = [s - k for s, k in zip(slopes, kept, strict=True)]
        pull = sum(
            g.conj() * torch.fft.rfft2(k - d)
            for g, k, d in zip(gradients, kept, duals, strict=True)
        )
        objects = torch.fft.irfft2((data + coupling * pull) * inverse, s=field.shape)
    return objects


def _shock(objects: torch.Tensor, steps: int = 8, size: float = 0.2) -> torch.Tensor:
    """The object with sharper edges (Osher & Rudin, SIAM J. Numer. Anal. 27, 919 (1990))."""
    for _ in range(steps):
        near = [objects.roll(shift, axis) for axis in (0, 1) for shift in (1, -1)]
        laplacian = sum(near) - 4 * objects
        slope = (near[1] - near[0]).square() + (near[3] - near[2]).square()
        objects = objects - size * torch.sign(laplacian) * slope.sqrt() / 2
    return objects


def _fit_psf(
    objects: torch.Tensor,
    field: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor],
    size: int,
) -> torch.Tensor:
    """PSF (K, K), positive and of sum 1, by least squares on the gradients."""
    sharp, blurred = torch.fft.rfft2(objects), torch.fft.rfft2(field)
    smooth = sum(g.abs().square() for g in gradients)
    power = smooth * sharp.abs().square()
    # a small share of the mean power keeps frequencies without signal from growing
    transfer = smooth * sharp.conj() * blurred / (power + 1e-3 * power.mean())
    full = torch.fft.irfft2(transfer, s=field.shape)
    psf = full.roll((size // 2, size // 2), (0, 1))[:size, :size]
    psf = torch.where(psf > 0.05 * psf.max(), psf, 0.0)  # the rest is noise
    return psf / psf.sum()
