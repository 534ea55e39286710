"""Blur by a PSF that varies over the field, and its exact adjoint.

The image is y = sum_k e_k * (w_k x). The weights w_k act before the convolution, so that each
*object* point has one PSF. The PSFs of a coarse map are compressed to a few eigen-PSFs e_k by a
singular value decomposition. Each weight w_k is the map of one coefficient, interpolated linearly.
The cost is one pair of Fourier transforms per eigen-PSF, however many PSFs the map holds.

The object lives on a field that is larger than the image by half the width of the PSF on every
side. The image is the valid centre. Light from outside the image is thus part of the problem, and
the borders of a restoration neither ring nor darken.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.fft import next_fast_len

from psf.blur import interpolate_grid
from psf.errors import InputError
from psf.light import ScalarWarning
from psf.microscope import Microscope
from psf.model import PsfModel
from psf.synthesis import synthesize

ROUNDING = 1e-7  # smallest tolerance: float32 resolves no smaller share of a PSF's norm
# Singular vectors that are computed first, doubled while they miss the tolerance. Maps of 40 x 40
# PSFs (focus, astigmatism, Gaussian widths) need 7 to 59 at tolerances from 1e-2 to 1e-4.
FIRST_VECTORS = 64


@dataclass(frozen=True)
class VariantBlur:
    """The operator A that blurs an object (N, H + K - 1, W + K - 1) to its image (N, H, W).

    Point (i, j) of the image lies at (i + before, j + before) of the field, where `before` is
    K - 1 - K // 2. Build it with `from_psfs` or `from_psf`. Its transforms are cached.
    """

    eigen_psfs: torch.Tensor  # (M, K, K)
    coefficients: torch.Tensor  # (M, R, C) on the grid of the map
    rows: torch.Tensor  # (R,) places of the grid, rising, pixels from the top of the image
    columns: torch.Tensor  # (C,) pixels from the left
    shape: tuple[int, int]  # H, W of the image
    error: float = 0.0  # of the worst PSF on the grid, |h - sum_k c_k e_k| / |h|

    @classmethod
    def from_psfs(
        cls,
        psfs: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
        shape: tuple[int, int],
        tolerance: float = 1e-3,
        rank: int | None = None,
    ) -> "VariantBlur":
        """Operator of the PSFs of a map, compressed to eigen-PSFs.

        Parameters
        ----------
        psfs : (R, C, K, K) tensor
            Centred on pixel K // 2. They are scaled to sum 1 here; type and device are kept.
        rows, columns : (R,) and (C,) tensors, rising
            Places of the PSFs in the image, pixels. Outside the grid the nearest PSF holds.
        shape : (H, W) of the image
        tolerance : largest error of a PSF on the grid as a share of its norm, in (0, 1)
        rank : number of eigen-PSFs, in place of a tolerance

        Raises
        ------
        InputError
            For PSFs that are larger than the image, negative, not finite or dark, or a grid that
            does not fit them.
        """
        _check_psfs(psfs, rows, columns, shape)
        if rank is None and not 0 < tolerance < 1:
            raise InputError(f"the tolerance is {tolerance:g}; give a share between 0 and 1.")
        if rank is not None and rank < 1:
            raise InputError(f"the rank is {rank}; give at least 1.")
        flat = in_float64(psfs.detach()).flatten(2).flatten(0, 1)  # (R C, K K)
        coefficients, eigen, error = _compress(flat / flat.sum(1, keepdim=True), tolerance, rank)
        count, size = len(eigen), psfs.shape[-1]
        return cls(
            eigen.reshape(count, size, size).to(psfs),
            coefficients.T.reshape(count, *psfs.shape[:2]).to(psfs),
            rows.to(psfs),
            columns.to(psfs),
            (int(shape[0]), int(shape[1])),
            error,
        )

    @classmethod
    def from_psf(cls, psf: torch.Tensor, shape: tuple[int, int]) -> "VariantBlur":
        """One PSF (K, K) for the whole field."""
        place = torch.zeros(1, device=psf.device)
        return cls.from_psfs(psf[None, None], place, place, shape)

    @property
    def rank(self) -> int:
        """Number of eigen-PSFs, M."""
        return len(self.eigen_psfs)

    @property
    def psf_size(self) -> int:
        """Edge K of the PSFs."""
        return self.eigen_psfs.shape[-1]

    @property
    def field_shape(self) -> tuple[int, int]:
        """Height and width of the field that the object lives on."""
        return self.shape[0] + self.psf_size - 1, self.shape[1] + self.psf_size - 1

    @property
    def image_part(self) -> tuple[slice, slice]:
        """Where the image lies in the field."""
        before = self.psf_size - 1 - self.psf_size // 2
        return slice(before, before + self.shape[0]), slice(before, before + self.shape[1])

    @cached_property
    def weights(self) -> torch.Tensor:
        """Coefficients (M, H + K - 1, W + K - 1) of each point of the field."""
        height, width = self.field_shape
        return self._padded_weights[:, :height, :width]

    @cached_property
    def _padded_weights(self) -> torch.Tensor:
        """Weights on the grid of the transforms, zero outside the field."""
        before, (height, width) = self.psf_size - 1 - self.psf_size // 2, self.field_shape
        device = self.coefficients.device
        y, x = (torch.arange(edge, device=device) - before for edge in (height, width))
        padded = self.coefficients.new_zeros(self.rank, *self._transform_shape)
        padded[:, :height, :width] = interpolate_grid(
            self.coefficients, self.rows, self.columns, y, x
        )
        return padded

    @cached_property
    def _spectra(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms of the eigen-PSFs and their conjugates; the valid centre begins at 0."""
        turned = self.eigen_psfs.new_zeros(self.rank, *self._transform_shape)
        turned[:, : self.psf_size, : self.psf_size] = self.eigen_psfs
        turned = turned.roll((1 - self.psf_size, 1 - self.psf_size), (1, 2))
        spectra = torch.fft.rfft2(turned)
        return spectra, spectra.conj().resolve_conj()

    @cached_property
    def _transform_shape(self) -> tuple[int, int]:
        # the circular wrap-around stays outside the valid centre, so no padding is needed
        height, width = (next_fast_len(edge, real=True) for edge in self.field_shape)
        return height, width

    def forward(self, objects: torch.Tensor) -> torch.Tensor:
        """Images A x, (N, H, W), of objects (N, H + K - 1, W + K - 1)."""
        shape, (height, width) = self._transform_shape, self.field_shape
        padding = (0, shape[1] - width, 0, shape[0] - height)
        padded = torch.nn.functional.pad(objects, padding)  # once, not in each transform
        parts = zip(self._padded_weights, self._spectra[0], strict=True)
        weight, spectrum = next(parts)
        total = torch.fft.rfft2(padded * weight).mul_(spectrum)
        for weight, spectrum in parts:  # one at a time: one transform fits the cache of a core
            total.addcmul_(torch.fft.rfft2(padded * weight), spectrum)
        return torch.fft.irfft2(total, s=shape)[:, : self.shape[0], : self.shape[1]]

    def adjoint(self, images: torch.Tensor) -> torch.Tensor:
        """A^T y, (N, H + K - 1, W + K - 1): the light of images (N, H, W) sent to its sources."""
        shape, (height, width) = self._transform_shape, self.field_shape
        spread = torch.fft.rfft2(images, s=shape)
        parts = zip(self._padded_weights, self._spectra[1], strict=True)
        weight, spectrum = next(parts)
        total = torch.fft.irfft2(spread * spectrum, s=shape).mul_(weight)
        for weight, spectrum in parts:
            total.addcmul_(torch.fft.irfft2(spread * spectrum, s=shape), weight)
        return total[:, :height, :width]

    @cached_property
    def seen(self) -> torch.Tensor:
        """A^T 1, (H + K - 1, W + K - 1): share of each point's light that reaches the image."""
        return self.seen_by(self.eigen_psfs.new_ones(self.shape))

    def seen_by(self, weights: torch.Tensor) -> torch.Tensor:
        """A^T w, (H + K - 1, W + K - 1): share of each point's light that reaches usable pixels.

        The weights (H, W) are 1 for usable pixels and 0 for others; bool is allowed.
        """
        return self.adjoint(weights.to(self.eigen_psfs)[None])[0].clamp(min=0)

    def part(self, part: tuple[slice, slice]) -> "VariantBlur":
        """The same blur for a part of the image; its weights are made when they are needed."""
        (top, bottom), (left, right) = ((line.start, line.stop) for line in part)
        return self.window(top, left, (bottom - top, right - left))

    def window(self, top: int, left: int, shape: tuple[int, int]) -> "VariantBlur":
        """The same blur for the image (H, W) that begins at (top, left), pixels, of this one."""
        rows, columns = self.rows - top, self.columns - left
        return VariantBlur(self.eigen_psfs, self.coefficients, rows, columns, shape, self.error)

    def binned(self) -> "VariantBlur":
        """The same blur for the image of half the edges, whose pixels sum 2 x 2 of this one.

        Object points count as blocks of 2 x 2 pixels. Along each axis the PSF of such blocks is the
        PSF convolved with (1/2, 1, 1/2), at every second place.
        """
        half, line = self.psf_size // 2, self.eigen_psfs.new_tensor([0.5, 1.0, 0.5])
        reach = (half + 1) // 2  # of the binned PSF, to each side
        margin = 2 * reach + 1 - half
        padded = torch.nn.functional.pad(self.eigen_psfs[:, None], [margin] * 4)
        psfs = torch.nn.functional.conv2d(padded, (line[:, None] * line)[None, None], stride=2)
        shape = (self.shape[0] // 2, self.shape[1] // 2)
        places = (self.rows - 0.5) / 2, (self.columns - 0.5) / 2
        return VariantBlur(psfs[:, 0], self.coefficients, *places, shape, self.error)

    def psf_at(self, row: float, column: float) -> torch.Tensor:
        """PSF (K, K) of the object point at a place of the image, pixels."""
        y, x = self.rows.new_tensor([row]), self.columns.new_tensor([column])
        own = interpolate_grid(self.coefficients, self.rows, self.columns, y, x)  # (M, 1, 1)
        return (own * self.eigen_psfs).sum(0)


def in_float64(values: torch.Tensor) -> torch.Tensor:
    """The values in double precision, moved to the CPU where their device (MPS) has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _compress(
    psfs: torch.Tensor, tolerance: float, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Coefficients (M, r), eigen-PSFs (r, D) and largest error of PSFs (M, D) of sum 1."""
    bound = max(tolerance, ROUNDING) if rank is None else 0.0
    norm = psfs.norm(dim=1, keepdim=True)
    # PSFs of unit norm count equally; without the division sharp ones would dominate
    left, strength, right = _singular_vectors(psfs / norm, bound, rank or 0)
    shares = left * strength * norm  # (M, r)
    missed = (1 - (left * strength).square().cumsum(1)).clamp(min=0).sqrt().amax(0)  # by rank
    full = len(strength)
    first = int((missed > bound).sum()) + 1 if rank is None else rank
    for count in range(min(first, full), full + 1):
        coefficients, eigen = shares[:, :count], right[:count]
        coefficients = coefficients / (coefficients @ eigen.sum(1))[:, None]  # sum 1 again
        error = float(((coefficients @ eigen - psfs).norm(dim=1) / norm[:, 0]).max())
        if rank is not None or error <= bound:
            break
    return coefficients, eigen, error


def _singular_vectors(
    rows: torch.Tensor, bound: float, fewest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left vectors (M, r), singular values (r,) and right vectors (r, D) of unit rows (M, D).

    They keep each row within `bound`, and are at least `fewest`. Of many rows only the leading
    vectors are computed, by random projections with a fixed seed.
    """
    count = max(FIRST_VECTORS, 2 * fewest)
    while 2 * count < min(rows.shape):
        left, strength, right = _leading_vectors(rows, count)
        missed = (1 - (left * strength).square().sum(1)).clamp(min=0).sqrt().max()
        # half of the bound: scaling to sum 1 comes later and adds an error of its own
        if fewest or float(missed) <= bound / 2:
            return left, strength, right.T
        count *= 2
    return torch.linalg.svd(rows, full_matrices=False)


def _leading_vectors(
    rows: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leading singular vectors of rows (M, D), the same in each call.

    torch.svd_lowrank draws from the generator of the device, whose state is kept. Only the GPU of
    the rows is asked for it: each other one would reserve memory for this process.
    """
    gpus = [rows.device] if rows.is_cuda and torch.cuda.is_available() else []
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(0)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(0)
        return torch.svd_lowrank(rows, count)


def psf_grid_from_map(
    model: PsfModel, values: torch.Tensor, microscope: Microscope, psf_size: int
) -> torch.Tensor:
    """PSFs (R, C, K, K) of a map of labels (P, R, C); labels are clamped to the model's ranges.

    Raises
    ------
    InputError
        If the map does not hold the model's labels, or if the size is even: the centre of an even
        grid lies between pixels and would shift the restored image by half a pixel.
    """
    if values.ndim != 3 or len(values) != len(model.label_names):
        raise InputError(
            f"the map has shape {tuple(values.shape)}; {model.name} needs "
            f"({len(model.label_names)}, R, C): {', '.join(model.label_names)}."
        )
    if psf_size % 2 == 0:
        raise InputError(f"the PSF size is {psf_size}; give an odd number of pixels.")
    low, high = values.new_tensor(model.label_ranges).T[..., None, None]
    labels = values.clamp(low, high).flatten(1).T
    with warnings.catch_warnings():
        # The map holds estimates of a network for this light; nobody can choose another one here.
        warnings.simplefilter("ignore", ScalarWarning)
        psfs = synthesize(model, labels, microscope, psf_size)
    return psfs.reshape(*values.shape[1:], psf_size, psf_size)


def finer_grid(
    values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, factor: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels (P, R', C') and their places on a grid `factor` times as fine, interpolated linearly.

    Between two grid points the operator mixes their PSFs. The mixture of 1 and 3 um of defocus is
    not the PSF of 2 um, so steps from point to point should be small. More PSFs do not slow down
    the operator.
    """
    if factor < 1:
        raise InputError(f"the factor of the finer grid is {factor}; give at least 1.")
    fine_y, fine_x = (_between(places, factor) for places in (rows, columns))
    grid = (rows.to(values), columns.to(values))
    return interpolate_grid(values, *grid, fine_y.to(values), fine_x.to(values)), fine_y, fine_x


def _between(places: torch.Tensor, factor: int) -> torch.Tensor:
    """Rising places (R,) and factor - 1 more in each gap."""
    places = in_float64(places)
    steps = torch.arange(factor, device=places.device) / factor
    inner = places[:-1, None] + steps * places.diff()[:, None]
    return torch.cat([inner.flatten(), places[-1:]])


def _check_psfs(
    psfs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int]
) -> None:
    if psfs.ndim != 4 or psfs.shape[2] != psfs.shape[3] or not psfs.is_floating_point():
        raise InputError(f"the PSFs have shape {tuple(psfs.shape)}; give numbers (R, C, K, K).")
    if rows.shape != psfs.shape[:1] or columns.shape != psfs.shape[1:2]:
        raise InputError(
            f"{rows.numel()} rows and {columns.numel()} columns do not fit a grid of "
            f"{psfs.shape[0]} x {psfs.shape[1]} PSFs."
        )
    for name, places in (("rows", rows), ("columns", columns)):
        if not torch.isfinite(places).all() or (places.diff() <= 0).any():
            raise InputError(f"the {name} of the grid do not rise; sort the map.")
    if not torch.isfinite(psfs).all() or (psfs < 0).any() or (psfs.sum((2, 3)) <= 0).any():
        raise InputError("a PSF is negative, not finite or dark; make the PSFs again.")
    size = psfs.shape[-1]
    if size > min(shape):
        raise InputError(f"a PSF of {size} px does not fit an image of {shape[0]} x {shape[1]} px.")
