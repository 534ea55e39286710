"""Axisymmetric PSFs: a Hankel integral with Gauss-Legendre nodes and cached Bessel tables."""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.special import j0

from psf.model import PsfModel, wavefront

V_STEP = 0.125  # of the Bessel table that serves varied optics, optical units


def hankel_psfs(
    model: PsfModel, labels: torch.Tensor, cutoff: torch.Tensor, grid: int
) -> torch.Tensor:
    """Axisymmetric PSFs (N, G, G): h(r) = |int_0^1 exp(2 pi i W) J0(v rho) 2 rho d rho|^2.

    v = pi cutoff r; `cutoff` is in cycles per grid step, shape (1,) or (N,).
    """
    radii, place = _unique_radii(grid)
    v_max = math.pi * float(cutoff.max()) * float(radii[-1])
    nodes = _node_count(v_max + _steepest_phase(model, labels))
    rho, weights = (torch.from_numpy(a).to(labels) for a in _gauss_legendre(nodes))
    phase = 2 * math.pi * wavefront(model, labels, rho, torch.zeros_like(rho))  # (N, Q)
    pupil = torch.stack([phase.cos(), phase.sin()], 1) * (2 * rho * weights)  # (N, 2, Q)
    if len(cutoff) == 1:
        table = _bessel_on_grid(grid, float(cutoff), nodes, labels.device, labels.dtype)  # (Q, R)
        amplitude = pupil @ table  # (N, 2, R)
    else:
        columns = 16 * math.ceil((v_max / V_STEP + 4) / 16)
        table = _bessel_on_line(columns, nodes, labels.device, labels.dtype)  # (Q, V)
        v = math.pi * cutoff[:, None] * torch.from_numpy(radii).to(labels)  # (N, R)
        amplitude = _interpolate(pupil @ table, v / V_STEP)  # (N, 2, R)
    profile = amplitude.square().sum(1) * (math.pi / 4) * cutoff[:, None] ** 2  # unit energy
    return profile[:, torch.from_numpy(place).to(labels.device)].reshape(-1, grid, grid)


def _interpolate(samples: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Cubic Lagrange interpolation of (N, 2, V) at fractional columns (N, R); (N, 2, R).

    |d^4 A / dv^4| <= 1/3 for any pupil, so that the error stays below 3/128 V_STEP^4 / 3 = 2e-6.
    """
    left = place.floor().clamp(min=1, max=samples.shape[-1] - 3)
    t = place - left
    weights = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    )
    index = left.long()[:, None].expand(-1, 2, -1)
    return sum(
        w[:, None] * samples.gather(2, index + k)
        for k, w in zip((-1, 0, 1, 2), weights, strict=True)
    )


def _node_count(steepest_phase: float) -> int:
    """Gauss-Legendre nodes for an integrand exp(i kappa rho) on [0, 1], kappa = steepest_phase.

    The error falls super-exponentially once 2 Q > kappa / 2 (it is bounded by the tail of Bessel
    functions J_k(kappa / 2) with k >= 2 Q); the margin grows with the width of that transition.
    """
    needed = steepest_phase / 4 + 3 * steepest_phase ** (1 / 3) + 6
    return 8 * math.ceil(needed / 8)  # in steps, so that tables are reused


def _steepest_phase(model: PsfModel, labels: torch.Tensor) -> float:
    """Bound on |d(2 pi W)/d rho| over the pupil, radians, rounded up so that tables are reused."""
    rho = torch.linspace(0, 1, 65, dtype=labels.dtype, device=labels.device)
    phase = 2 * math.pi * wavefront(model, labels.detach(), rho, torch.zeros_like(rho))
    slope = float(phase.diff(dim=1).abs().max()) * 64
    return 16 * math.ceil(slope / 16)


@lru_cache(maxsize=32)
def _gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


@lru_cache(maxsize=16)
def _unique_radii(grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct distances from the grid's middle, ascending, and the index of each of G*G points."""
    twice = 2 * np.arange(grid) - (grid - 1)  # integers: radii compare exactly
    squares, place = np.unique(twice[:, None] ** 2 + twice**2, return_inverse=True)
    return np.sqrt(squares) / 2, place.ravel()


@lru_cache(maxsize=8)
def _bessel_on_grid(
    grid: int, cutoff: float, nodes: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """J0(pi cutoff r rho) at the nodes (rows) and the unique radii of a grid (columns)."""
    v = math.pi * cutoff * _unique_radii(grid)[0]
    return torch.from_numpy(j0(_gauss_legendre(nodes)[0][:, None] * v)).to(device, dtype)


@lru_cache(maxsize=8)
def _bessel_on_line(
    columns: int, nodes: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """J0(v rho) at the nodes (rows) and v = 0, V_STEP, 2 V_STEP, .. (columns)."""
    v = V_STEP * np.arange(columns)
    return torch.from_numpy(j0(_gauss_legendre(nodes)[0][:, None] * v)).to(device, dtype)
