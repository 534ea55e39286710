"""Optical transfer functions on the FFT grid of an image: to blur without a PSF of its own."""

import torch

from psf.errors import InputError
from psf.microscope import Microscopes, cutoffs
from psf.model import PsfModel, psf_model
from psf.synthesis import synthesize_with_loss


def transfer_functions(
    model: PsfModel | str,
    labels: torch.Tensor,
    microscope: Microscopes,
    shape: tuple[int, int],
) -> torch.Tensor:
    """OTFs, complex (N, H, W // 2 + 1), on the grid of `torch.fft.rfft2`.

    `torch.fft.irfft2(torch.fft.rfft2(images) * otf, s=shape)` blurs without shifting; the image is
    periodic. At frequency 0 stands the share of the light that falls within half the shape of
    its emitter. Where the pixels sample the PSF at Nyquist or better the OTF is that of points
    times the pixel's sinc(fx) sinc(fy); coarser pixels are integrated before the transform, so
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
