"""Blur that varies over the field: eigen-PSFs, weights, and the exact adjoint.

y = sum_k e_k * (w_k x): the weights act before the convolution, so that each *object* point has
one PSF. The PSFs of a coarse map are compressed to a few eigen-PSFs e_k by a singular value
decomposition; each weight w_k is the map of one coefficient, interpolated linearly. The cost is one
pair of Fourier transforms per eigen-PSF, however many PSFs the map holds.

The object lives on a field that is larger than the image by the half width of the PSF on every
side, and the image is the valid centre: light from outside is part of the problem, so that borders
neither ring nor darken.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.fft import next_fast_len

from psf.blur import interpolate_grid
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel
from psf.synthesis import synthesize

ROUNDING = 1e-7  # of the decomposition: no tolerance below it
FEWEST_PARTS = 64  # that the decomposition of many PSFs looks for


@dataclass(frozen=True)
class VariantBlur:
    """The operator A from an object (N, H + K - 1, W + K - 1) to its image (N, H, W).

    Point (i, j) of the image lies at (i + before, j + before) of the field, `before` being
    K - 1 - K // 2. Build it with `from_psfs` or `from_psf`; transforms are cached.
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
        """Compress the PSFs of a map.

        Parameters
        ----------
        psfs : (R, C, K, K) tensor
            Centred on pixel K // 2; scaled to sum 1 here. Floating type and device are kept.
        rows, columns : (R,) and (C,) tensors, rising
            Where in the image the PSFs belong, pixels; outside the grid the nearest one holds.
        shape : (H, W) of the image
        tolerance : largest error of a PSF on the grid, of its norm, in (0, 1)
        rank : number of eigen-PSFs, instead of a tolerance

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
        size, grid = psfs.shape[-1], psfs.shape[:2]
        flat = psfs.detach().double().flatten(2).flatten(0, 1)  # (R C, K K)
        flat = flat / flat.sum(1, keepdim=True)
        norm = flat.norm(dim=1, keepdim=True)
        bound = max(tolerance, ROUNDING) if rank is None else 0.0
        # of unit norm, each PSF has the same say; decomposed without it, sharp ones prevail
        left, strength, right = _leading_parts(flat / norm, bound, rank or 0)
        shares = left * strength * norm  # (R C, M)
        missed = (1 - (left * strength).square().cumsum(1)).clamp(min=0).sqrt().amax(0)  # by rank
        full = len(strength)
        first = int((missed > bound).sum()) + 1 if rank is None else rank
        for count in range(min(first, full), full + 1):
            coefficients, eigen = shares[:, :count], right[:count]
            coefficients = coefficients / (coefficients @ eigen.sum(1))[:, None]  # unit sum again
            error = float(((coefficients @ eigen - flat).norm(dim=1) / norm[:, 0]).max())
            if rank is not None or error <= bound:
                break
        return cls(
            eigen.reshape(count, size, size).to(psfs),
            coefficients.T.reshape(count, *grid).to(psfs),
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
        """Weights, zero beyond the field, on the grid of the transforms."""
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
        # what wraps around misses the valid centre, so that the field needs no more room
        height, width = (next_fast_len(edge, real=True) for edge in self.field_shape)
        return height, width

    def forward(self, objects: torch.Tensor) -> torch.Tensor:
        """Images A x, (N, H, W), of objects (N, H + K - 1, W + K - 1)."""
        shape, (height, width) = self._transform_shape, self.field_shape
        padding = (0, shape[1] - width, 0, shape[0] - height)
        padded = torch.nn.functional.pad(objects, padding)  # once, and not in each transform
        parts = zip(self._padded_weights, self._spectra[0], strict=True)
        weight, spectrum = next(parts)
        total = torch.fft.rfft2(padded * weight).mul_(spectrum)
        for weight, spectrum in parts:  # one at a time: they fit the cache of a processor core
            total.addcmul_(torch.fft.rfft2(padded * weight), spectrum)
        return torch.fft.irfft2(total, s=shape)[:, : self.shape[0], : self.shape[1]]

    def adjoint(self, images: torch.Tensor) -> torch.Tensor:
        """Light A^T y, (N, H + K - 1, W + K - 1), of images (N, H, W), sent back to its sources."""
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
        """A^T 1, (H + K - 1, W + K - 1): the share of each point's light that the image holds."""
        ones = self.eigen_psfs.new_ones(1, *self.shape)
        return self.adjoint(ones)[0].clamp(min=0)

    def window(self, top: int, left: int, shape: tuple[int, int]) -> "VariantBlur":
        """The same blur for a part of the image."""
        rows, columns = self.rows - top, self.columns - left
        return VariantBlur(self.eigen_psfs, self.coefficients, rows, columns, shape, self.error)

    def psf_at(self, row: float, column: float) -> torch.Tensor:
        """PSF (K, K) of the object point at a place of the image, pixels."""
        y, x = self.rows.new_tensor([row]), self.columns.new_tensor([column])
        own = interpolate_grid(self.coefficients, self.rows, self.columns, y, x)  # (M, 1, 1)
        return (own * self.eigen_psfs).sum(0)


def _leading_parts(
    rows: torch.Tensor, bound: float, fewest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left vectors (M, r), singular values (r,) and right vectors (r, D) of rows (M, D).

    As many as keep each row within `bound`, and at least `fewest`. Of many rows only the leading
    parts are computed, from random projections and two power iterations (Halko, Martinsson & Tropp,
    SIAM Rev. 53, 217 (2011), Algorithm 4.4), their number doubled until they suffice.
    """
    count = max(FEWEST_PARTS, 2 * fewest)
    generator = torch.Generator().manual_seed(0)
    while 2 * count < min(rows.shape):
        probes = torch.randn(rows.shape[1], count, generator=generator, dtype=rows.dtype)
        basis = torch.linalg.qr(rows @ probes.to(rows.device)).Q  # (M, count)
        for _ in range(2):
            basis = torch.linalg.qr(rows @ torch.linalg.qr(rows.T @ basis).Q).Q
        left, strength, right = torch.linalg.svd(basis.T @ rows, full_matrices=False)
        left = basis @ left
        missed = (1 - (left * strength).square().sum(1)).clamp(min=0).sqrt().max()
        # half of the bound, since rows are scaled to unit sum after they were cut off
        if fewest or float(missed) <= bound / 2:
            return left, strength, right
        count *= 2
    return torch.linalg.svd(rows, full_matrices=False)


def psf_grid_from_map(
    model: PsfModel, values: torch.Tensor, microscope: Microscope, psf_size: int
) -> torch.Tensor:
    """PSFs (R, C, K, K) of a map of labels (P, R, C); labels are clamped into the model's ranges.

    Raises
    ------
    InputError
        If the map does not hold the model's labels, or the size is even: the centre of an even
        grid lies between pixels and would shift what is restored by half of one.
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
    psfs = synthesize(model, labels, microscope, psf_size)
    return psfs.reshape(*values.shape[1:], psf_size, psf_size)


def finer_grid(
    values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, factor: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels (P, R', C') and their places on a grid `factor` times as fine, interpolated linearly.

    Between two grid points the operator mixes their PSFs. Between 1 and 3 um of defocus this is
    not the PSF of 2 um, so that steps from point to point should be small; more PSFs cost nothing.
    """
    if factor < 1:
        raise InputError(f"the factor is {factor}; give at least 1.")
    fine_y, fine_x = (_between(places, factor) for places in (rows, columns))
    grid = (rows.to(values), columns.to(values))
    return interpolate_grid(values, *grid, fine_y.to(values), fine_x.to(values)), fine_y, fine_x


def _between(places: torch.Tensor, factor: int) -> torch.Tensor:
    """Rising places (R,) and factor - 1 more in each gap."""
    places = places.double()
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
        raise InputError("a PSF is negative, not finite or dark; make the PSFs anew.")
    size = psfs.shape[-1]
    if size > min(shape):
        raise InputError(f"a PSF of {size} px does not fit an image of {shape[0]} x {shape[1]} px.")
