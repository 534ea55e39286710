"""Smooth maps: each patch is estimated together with its neighbours.

The PSF of a microscope and the height of a cell change slowly across the field, so that a map may
be smoothed. Patches count by their predicted standard deviations, outliers count less, and blank
patches are filled from their neighbours. Cross-validation over blocks of patches chooses the
strength; the blocks are so large that they share few pixels with the rest.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.ndimage import uniform_filter1d
from scipy.sparse.linalg import splu

from psf.blur import interpolate_grid
from psf.errors import InputError

# Tried by cross-validation, then half a decade to either side. The first leaves a map as it is, the
# last bends it to a plane.
STRENGTHS = tuple(10.0**k for k in range(-3, 5))
FOLDS = 5  # of the cross-validation: each map keeps four fifths of the patches
HUBER_WIDTH = 1.5  # standard deviations; farther off, a patch counts as an outlier (Huber 1964)
REWEIGHTINGS = 4  # of the patches, by their distance from the last solution
SMALLEST_WEIGHT = 1e-6  # of a blank patch: it keeps the system solvable
LARGEST_GRID = 4000  # patches; larger maps are averaged over cells first, which bounds the time
DRAWS = 24  # of the noise: the standard deviation of a smooth map is good to 15 %


@dataclass(frozen=True)
class SmoothMap:
    """A smoothed parameter on the map's grid, R rows and C columns."""

    values: np.ndarray  # (R, C)
    standard_deviations: np.ndarray  # (R, C), with the overlap of the patches taken into account
    strength: float  # of the smoothing: weight of the squared bending against that of the data
    outliers: float  # share of patches farther off than three of their standard deviations


def smooth_map(
    values: np.ndarray,
    deviations: np.ndarray,
    content: np.ndarray,
    overlap: float,
    strength: float | None = None,
    seed: int = 0,
) -> SmoothMap:
    """Smooth one parameter of a map.

    Minimises the sum of Huber losses of (value - estimate) / deviation over the patches with
    content plus `strength` times the squared second differences, measured over patch sizes so that
    the strength means the same at every stride. Neighbouring estimates share pixels and hence
    errors; each counts for the part of its area that is its own.

    Parameters
    ----------
    values, deviations : (R, C)
        Estimates of the patches and their standard deviations.
    content : (R, C) bool
        Patches that count.
    overlap : patch size / stride, at least 1
    strength : positive, or None to choose it by cross-validation over blocks of patches
    seed : of the folds and of the noise draws

    Raises
    ------
    InputError
        If no patch has content, or the strength is not positive.
    """
    if not content.any():
        raise InputError("no patch of the map has content; there is nothing to smooth.")
    if strength is not None and not strength > 0:
        raise InputError(f"the strength of the smoothing is {strength:g}; it must be positive.")
    if values.size > LARGEST_GRID:
        return _smooth_averaged(values, deviations, content, overlap, strength, seed)
    problem = _Problem(values, deviations, content, overlap)
    if strength is None:
        strength = choose_strength(problem, seed)
    smooth, weights = problem.solve_robustly(strength)
    spread = problem.spread(strength, weights, np.random.default_rng(seed))
    far = np.abs(smooth - values)[content] > 3 * deviations[content]
    return SmoothMap(smooth, spread, strength, float(far.mean()))


class _Problem:
    """The least-squares problem of one parameter; weights are diagonal."""

    def __init__(
        self, values: np.ndarray, deviations: np.ndarray, content: np.ndarray, overlap: float
    ) -> None:
        self.shape, self.overlap = values.shape, overlap
        self.values = np.where(content, values, 0.0).ravel().astype(float)
        self.deviations = np.where(content, deviations, 1.0).ravel().astype(float)
        self.content = content
        own = 1 / overlap**2  # share of a patch that its neighbours do not see
        self.weights = np.where(content.ravel(), own / self.deviations**2, 0.0)
        # scale free of the parameter's unit: bending counts in typical standard deviations
        typical = float(np.median(self.deviations[content.ravel()]))
        self.differences = second_differences(self.shape, overlap) * (math.sqrt(own) / typical)
        self.bending = (self.differences.T @ self.differences).tocsr()

    def solve(self, strength: float, weights: np.ndarray) -> np.ndarray:
        """Solution (R, C) for given weights (R C,)."""
        return self._factor(strength, weights).solve(weights * self.values).reshape(self.shape)

    def solve_robustly(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Solution (R, C) by iterative reweighting, and the last weights (R C,)."""
        weights = self.weights
        for _ in range(REWEIGHTINGS):
            found = self.solve(strength, weights)
            distance = np.abs(found.ravel() - self.values) / self.deviations
            weights = self.weights * np.minimum(1, HUBER_WIDTH / np.maximum(distance, 1e-9))
        return found, weights

    def spread(self, strength: float, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Standard deviation (R, C) of the solution.

        From draws of the estimates' errors and of the bending that the strength holds possible
        (Papandreou & Yuille 2010).
        """
        noise = _box_filtered(rng.standard_normal((DRAWS, *self.shape)), self.overlap)
        errors = weights * self.deviations * noise.reshape(DRAWS, -1)
        bends = rng.standard_normal((DRAWS, self.differences.shape[0]))
        right = errors + math.sqrt(strength) * (self.differences.T @ bends.T).T
        draws = self._factor(strength, weights).solve(np.ascontiguousarray(right.T))
        return np.sqrt(np.mean(draws**2, 1)).reshape(self.shape)

    def _factor(self, strength: float, weights: np.ndarray) -> splu:
        floor = SMALLEST_WEIGHT * weights.max()
        return splu((sparse.diags(weights + floor) + strength * self.bending).tocsc())


def choose_strength(problem: _Problem, seed: int) -> float:
    """Strength whose map predicts left-out blocks of patches best, by their Huber loss."""
    folds = block_folds(problem.shape, problem.overlap, seed).ravel()
    losses = {strength: left_out_loss(problem, strength, folds) for strength in STRENGTHS}
    best = min(losses, key=losses.get)
    for strength in (best / math.sqrt(10), best * math.sqrt(10)):
        losses[strength] = left_out_loss(problem, strength, folds)
    return min(losses, key=losses.get)


def left_out_loss(problem: _Problem, strength: float, folds: np.ndarray) -> float:
    """Huber loss of the patches of each fold against a map made without them."""
    _, weights = problem.solve_robustly(strength)
    loss = 0.0
    for fold in np.unique(folds):
        left_out = (folds == fold) & problem.content.ravel()
        kept = np.where(folds == fold, 0.0, weights)
        if not left_out.any() or not kept.any():
            continue
        found = problem.solve(strength, kept).ravel()
        distance = np.abs(found - problem.values)[left_out] / problem.deviations[left_out]
        linear = HUBER_WIDTH * (distance - HUBER_WIDTH / 2)
        loss += float(np.where(distance < HUBER_WIDTH, distance**2 / 2, linear).sum())
    return loss


def block_folds(shape: tuple[int, int], overlap: float, seed: int) -> np.ndarray:
    """Fold of each patch (R, C): square blocks, twice as wide as patches overlap, at random."""
    side = max(1, math.ceil(2 * overlap))
    rows, columns = (-(-n // side) for n in shape)
    folds = np.random.default_rng(seed).permutation(rows * columns).reshape(rows, columns) % FOLDS
    return np.kron(folds, np.ones((side, side), int))[: shape[0], : shape[1]]


def second_differences(shape: tuple[int, int], overlap: float) -> sparse.csr_matrix:
    """Bending of a map (R, C): second differences along both axes and the mixed one.

    The mixed one counts twice, as in a thin plate; lengths are in patch sizes.
    """
    rows, columns = shape
    along_y = sparse.kron(_difference(rows, 2), sparse.identity(columns))
    along_x = sparse.kron(sparse.identity(rows), _difference(columns, 2))
    mixed = sparse.kron(_difference(rows, 1), _difference(columns, 1))
    parts = [part for part in (along_y, along_x, math.sqrt(2) * mixed) if part.shape[0]]
    nothing = sparse.csr_matrix((1, rows * columns))  # a map of one patch has no differences
    return (sparse.vstack([*parts, nothing]) * overlap**2).tocsr()


def _difference(count: int, order: int) -> sparse.csr_matrix:
    """(count - order, count) finite differences; empty where there are too few points."""
    matrix = sparse.identity(count, format="csr")
    for _ in range(order):
        matrix = (matrix[1:] - matrix[:-1]).tocsr() if matrix.shape[0] else matrix
    return matrix


def _box_filtered(noise: np.ndarray, overlap: float) -> np.ndarray:
    """White noise (D, R, C) with the correlation of patches that overlap, of unit variance."""
    side = max(1, round(overlap))
    for axis in (1, 2):
        # the origin makes each window begin at its point
        noise = uniform_filter1d(noise, side, axis, mode="wrap", origin=-(side // 2))
    return noise * side


def _smooth_averaged(
    values: np.ndarray,
    deviations: np.ndarray,
    content: np.ndarray,
    overlap: float,
    strength: float | None,
    seed: int,
) -> SmoothMap:
    """Smooth a large map on cells that average several of its patches, then interpolate."""
    side = math.ceil(math.sqrt(values.size / LARGEST_GRID))
    rows, columns = (n // side for n in values.shape)

    def cells(array: np.ndarray) -> np.ndarray:
        cut = array[: rows * side, : columns * side]
        return cut.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows, columns, -1)

    weights = cells(np.where(content, 1 / deviations**2, 0.0))
    total = weights.sum(2)
    mean = (weights * cells(np.where(content, values, 0.0))).sum(2) / np.maximum(total, 1e-30)
    # overlapping patches share their errors: the mean of a cell is as good as one of its patches
    shared = min(1.0, overlap / side) ** 2
    count = np.maximum((weights > 0).sum(2), 1)
    spread = np.sqrt(count / np.maximum(total, 1e-30) * np.maximum(shared, 1 / count))
    small = smooth_map(mean, spread, total > 0, max(1.0, overlap / side), strength, seed)
    targets = [(torch.arange(n, dtype=torch.double) + 0.5) / side - 0.5 for n in values.shape]
    grid = [torch.arange(n, dtype=torch.double) for n in (rows, columns)]

    def spread_out(array: np.ndarray) -> np.ndarray:
        return interpolate_grid(torch.from_numpy(array), *grid, *targets).numpy()

    smooth = spread_out(small.values)
    far = np.abs(smooth - values)[content] > 3 * deviations[content]
    return SmoothMap(
        smooth,
        spread_out(small.standard_deviations),
        small.strength,
        float(far.mean()),
    )
