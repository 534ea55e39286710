"""The spatially variant operator: equal to sums of direct convolutions, its adjoint, its centre."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from psf import InputError, Microscope, psf_model, synthesize, synthesize_with_loss
from psf.blur import blur_valid, blur_varying
from restoration.variant_blur import VariantBlur, finer_grid, psf_grid_from_map

EXACT = 1e-10  # float64, of values of order one
MICROSCOPE = Microscope()


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


def random_grid(rows, columns, size, seed=1):
    psfs = random(rows, columns, size, size, seed=seed)
    return psfs / psfs.sum((2, 3), keepdim=True)


def defocus_grid(size=31):
    """PSFs (4, 4, K, K) that defocus by 0 to 3 um along the columns."""
    z_um = torch.linspace(0, 3, 4, dtype=torch.float64).repeat(4)[:, None]
    psfs, _ = synthesize_with_loss("gibson_lanni", z_um, MICROSCOPE, size)
    return psfs.reshape(4, 4, size, size)


def places(*values):
    return torch.tensor(values, dtype=torch.float64)


def blur_of(psfs, shape, **kwargs):
    rows = torch.linspace(3, shape[0] - 4, len(psfs), dtype=torch.float64)
    columns = torch.linspace(2, shape[1] - 7, psfs.shape[1], dtype=torch.float64)
    return VariantBlur.from_psfs(psfs, rows, columns, shape, **kwargs)


def largest(tensor):
    return float(tensor.abs().max())


@pytest.mark.parametrize("size", [1, 2, 6, 7])
@pytest.mark.parametrize("shape", [(33, 40), (40, 17)])
def test_adjoint(size, shape):
    blur = blur_of(random_grid(3, 4, size), shape, tolerance=1e-2)
    objects, images = random(2, *blur.field_shape), random(2, *shape, seed=5)
    there, back = (blur.forward(objects) * images).sum(), (objects * blur.adjoint(images)).sum()
    assert float(there) == pytest.approx(float(back), rel=EXACT)


@pytest.mark.parametrize("size", [6, 7])
def test_full_rank_is_the_sum_of_weighted_convolutions(size):
    psfs = random_grid(2, 3, size)
    blur = VariantBlur.from_psfs(psfs, places(4, 20), places(2, 11, 30), (25, 36), rank=6)
    before = size - 1 - size // 2
    along_y = np.arange(blur.field_shape[0]) - before
    along_x = np.arange(blur.field_shape[1]) - before
    objects, expected = random(*blur.field_shape).numpy(), 0.0
    for i, row in enumerate(np.eye(2)):
        for j, column in enumerate(np.eye(3)):
            own = np.outer(
                np.interp(along_y, [4, 20], row), np.interp(along_x, [2, 11, 30], column)
            )
            expected = expected + convolve2d(own * objects, psfs[i, j].numpy(), mode="valid")
    found = blur.forward(torch.from_numpy(objects)[None])[0]
    assert largest(found - torch.from_numpy(expected)) < EXACT


def test_agrees_with_the_blur_of_the_simulation():
    blur = blur_of(random_grid(3, 3, 9), (40, 40), tolerance=1e-2)
    objects = random(*blur.field_shape)
    expected = blur_varying(objects, blur.eigen_psfs, blur.weights)
    assert largest(blur.forward(objects[None])[0] - expected) < EXACT


def test_one_psf_is_plain_blur_of_rank_one():
    psf = random_grid(1, 1, 7)[0, 0]
    blur = VariantBlur.from_psf(psf, (20, 30))
    objects = random(3, 26, 36)
    assert blur.rank == 1
    assert largest(blur.forward(objects) - blur_valid(objects, psf[None])) < EXACT


def test_equal_psfs_need_one_eigen_psf():
    blur = blur_of(random_grid(1, 1, 7).expand(5, 4, 7, 7), (30, 30))
    assert blur.rank == 1
    assert largest(blur.weights - blur.weights[0, 0, 0]) < EXACT


@pytest.mark.parametrize("size", [8, 9])
def test_the_centre_is_pixel_half_the_size(size):
    delta = torch.zeros(1, 1, size, size, dtype=torch.float64)
    delta[..., size // 2, size // 2] = 1
    blur = blur_of(delta, (20, 30))
    objects = random(1, *blur.field_shape)
    assert largest(blur.forward(objects) - objects[:, *blur.image_part]) < EXACT


def test_each_object_point_has_the_psf_of_its_place():
    psfs = random_grid(2, 2, 7)
    blur = VariantBlur.from_psfs(psfs, places(0, 30), places(0, 40), (31, 41), rank=4)
    objects = torch.zeros(1, *blur.field_shape, dtype=torch.float64)
    objects[0, 3 + 15, 3 + 10] = 2  # in the middle of the rows, at a quarter of the columns
    own = (0.75 * psfs[:, 0] + 0.25 * psfs[:, 1]).mean(0)
    image = blur.forward(objects)[0]
    assert largest(image[12:19, 7:14] - 2 * own) < EXACT
    assert largest(blur.psf_at(15, 10) - own) < EXACT
    assert float(image.sum()) == pytest.approx(2)


def test_outside_the_grid_the_nearest_psf_holds():
    psfs = random_grid(2, 2, 5)
    blur = VariantBlur.from_psfs(psfs, places(10, 20), places(10, 20), (30, 30), rank=4)
    assert largest(blur.psf_at(0, 2) - psfs[0, 0]) < EXACT
    assert largest(blur.weights[:, 0, 0] - blur.coefficients[:, 0, 0]) < EXACT
    assert largest(blur.psf_at(29, 5) - psfs[1, 0]) < EXACT


@pytest.mark.parametrize("tolerance", [0.1, 1e-2, 1e-3])
def test_the_error_of_low_rank_stays_below_its_bound(tolerance):
    psfs = defocus_grid()
    blur = blur_of(psfs, (64, 64), tolerance=tolerance)
    found = torch.einsum("krc,kyx->rcyx", blur.coefficients, blur.eigen_psfs)
    errors = (found - psfs).norm(dim=(2, 3)) / psfs.norm(dim=(2, 3))
    assert float(errors.max()) == pytest.approx(blur.error, abs=1e-9)
    assert blur.error <= tolerance
    assert blur.rank <= 4


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_interpolated_psfs_of_any_rank_sum_to_one(rank):
    blur = blur_of(defocus_grid(), (64, 64), rank=rank)
    sums = torch.einsum("kyx,k->yx", blur.weights, blur.eigen_psfs.sum((1, 2)))
    assert largest(sums - 1) < EXACT
    objects = torch.zeros(1, *blur.field_shape, dtype=torch.float64)
    objects[:, 40:54, 40:54] = 3  # farther from the border than half a PSF
    assert float(blur.forward(objects).sum()) == pytest.approx(3 * 14 * 14)


def test_is_differentiable():
    blur = blur_of(random_grid(2, 2, 4), (9, 11), rank=3)
    objects = random(1, *blur.field_shape).requires_grad_()
    images = random(1, 9, 11).requires_grad_()
    assert torch.autograd.gradcheck(blur.forward, (objects,))
    assert torch.autograd.gradcheck(blur.adjoint, (images,))


def test_a_window_is_a_part_of_the_whole():
    blur = blur_of(defocus_grid(), (90, 80), rank=3)
    part = blur.window(20, 10, (50, 40))
    objects = random(1, *blur.field_shape)
    own = objects[:, 20 : 20 + part.field_shape[0], 10 : 10 + part.field_shape[1]]
    assert largest(part.forward(own) - blur.forward(objects)[:, 20:70, 10:50]) < EXACT


def test_seen_is_one_inside_and_falls_to_the_far_corner():
    blur = blur_of(random_grid(2, 2, 7), (30, 30))
    assert largest(blur.seen[6:-6, 6:-6] - 1) < EXACT
    assert 0 <= float(blur.seen[0, 0]) < 0.1
    assert float(blur.seen.min()) >= 0


def test_maps_become_psfs_of_clamped_labels():
    model = psf_model("zernike1d", {"focus": (0.0, 1.0)})
    values = torch.tensor([[[-0.5, 0.3], [0.7, 9.0]]])
    psfs = psf_grid_from_map(model, values, MICROSCOPE, 79)
    expected = synthesize(model, torch.tensor([[0.0], [0.3], [0.7], [1.0]]), MICROSCOPE, 79)
    assert largest(psfs.reshape(4, 79, 79) - expected) < 1e-7


def test_a_finer_grid_interpolates_labels():
    values, rows, columns = torch.tensor([[[0.0, 4.0], [2.0, 6.0]]]), places(10, 30), places(0, 8)
    fine, fine_rows, fine_columns = finer_grid(values, rows, columns, 2)
    assert fine_rows.tolist() == [10, 20, 30]
    assert fine_columns.tolist() == [0, 4, 8]
    assert fine[0].tolist() == [[0, 2, 4], [1, 3, 5], [2, 4, 6]]


GRID = random_grid(2, 2, 5)
ROWS = places(0.0, 9.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GRID, ROWS, ROWS, (4, 20)), "a PSF of 5 px does not fit an image of 4 x 20 px"),
        ((-GRID, ROWS, ROWS, (20, 20)), "a PSF is negative, not finite or dark"),
        ((GRID * torch.nan, ROWS, ROWS, (20, 20)), "a PSF is negative, not finite or dark"),
        ((0 * GRID, ROWS, ROWS, (20, 20)), "a PSF is negative, not finite or dark"),
        ((GRID, ROWS.flip(0), ROWS, (20, 20)), "the rows of the grid do not rise"),
        ((GRID, ROWS, places(1, 2, 3), (20, 20)), "2 rows and 3 columns do not fit a grid of 2 x"),
        ((GRID[0], ROWS, ROWS, (20, 20)), "give numbers \\(R, C, K, K\\)"),
        ((GRID, ROWS, ROWS, (20, 20), 0.0), "the tolerance is 0; give a share"),
        ((GRID, ROWS, ROWS, (20, 20), 1e-3, 0), "the rank is 0; give at least 1"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        VariantBlur.from_psfs(*arguments)


def test_refuses_maps_that_do_not_fit():
    model = psf_model("zernike2d")
    with pytest.raises(InputError, match="zernike2d needs \\(3, R, C\\): focus, ast_cos2"):
        psf_grid_from_map(model, torch.zeros(1, 2, 2), MICROSCOPE, 31)
    with pytest.raises(InputError, match="PSF size is 30; give an odd number"):
        psf_grid_from_map(model, torch.zeros(3, 2, 2), MICROSCOPE, 30)
    with pytest.raises(InputError, match="the factor of the finer grid is 0"):
        finer_grid(torch.zeros(1, 2, 2), ROWS, ROWS, 0)


@pytest.mark.filterwarnings("ignore::psf.synthesis.EnergyWarning")
def test_many_psfs_are_decomposed_as_well_as_by_a_full_decomposition():
    values = torch.linspace(0, 2, 900).reshape(1, 30, 30)
    psfs = psf_grid_from_map(psf_model("zernike1d"), values, Microscope(), 31)
    places = torch.arange(30.0)
    flat = (psfs / psfs.sum((2, 3), keepdim=True)).double().flatten(2).flatten(0, 1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    for tolerance in (1e-2, 1e-4):
        blur = VariantBlur.from_psfs(psfs, places, places, (64, 64), tolerance)
        rebuilt = blur.coefficients.flatten(1).T.double() @ blur.eigen_psfs.flatten(1).double()
        errors = (rebuilt - flat).norm(dim=1) / flat.norm(dim=1)
        assert float(errors.max()) == pytest.approx(blur.error, rel=0.05, abs=1e-6)
        assert blur.error <= tolerance
        strength = torch.linalg.svd(unit)[1].square()
        needed = int((strength.flip(0).cumsum(0).flip(0).sqrt() > tolerance).sum())
        assert blur.rank <= needed  # the worst PSF is at most as bad as all together


@pytest.mark.filterwarnings("ignore::psf.synthesis.EnergyWarning")
def test_the_decomposition_repeats_and_leaves_the_global_generator_alone():
    values = torch.linspace(0, 2, 400).reshape(1, 20, 20)
    psfs = psf_grid_from_map(psf_model("zernike1d"), values, Microscope(), 31)
    grid = torch.arange(20.0)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    blurs = []
    for drawn in expected:
        blurs.append(VariantBlur.from_psfs(psfs, grid, grid, (64, 64), 1e-3))
        assert torch.rand(1) == drawn
    assert torch.equal(blurs[0].eigen_psfs, blurs[1].eigen_psfs)
    assert torch.equal(blurs[0].coefficients, blurs[1].coefficients)
