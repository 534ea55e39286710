"""Zernike indices and polynomials against published tables; Seidel form to Zernike."""

import math

import numpy as np
import pytest
import torch

from psf import InputError
from psf.zernike import ansi_to_nm, nm_to_ansi, nm_to_noll, noll_to_nm, seidel_to_zernike, zernike

EXACT = 1e-12  # float64 rounding of polynomials of order ten and below

# R. J. Noll, JOSA 66, 207 (1976), Table I: from j = 1; even j cosine, odd j sine
NOLL = """0,0 1,1 1,-1 2,0 2,-2 2,2 3,-1 3,1 3,-3 3,3 4,0 4,2 4,-2 4,4 4,-4
    5,1 5,-1 5,3 5,-3 5,5 5,-5 6,0"""
# ANSI Z80.28: from j = 0, m from -n to n
ANSI = "0,0 1,-1 1,1 2,-2 2,0 2,2 3,-3 3,-1 3,1 3,3 4,-4 4,-2 4,0 4,2 4,4"


def modes(table):
    return [tuple(int(number) for number in mode.split(",")) for mode in table.split()]


# the polynomials as functions of Cartesian pupil coordinates, written out by hand
BY_HAND = {
    (0, 0): lambda x, y: 1 + 0 * x,
    (1, 1): lambda x, y: 2 * x,
    (1, -1): lambda x, y: 2 * y,
    (2, 0): lambda x, y: math.sqrt(3) * (2 * (x**2 + y**2) - 1),
    (2, -2): lambda x, y: math.sqrt(6) * 2 * x * y,
    (2, 2): lambda x, y: math.sqrt(6) * (x**2 - y**2),
    (3, -1): lambda x, y: math.sqrt(8) * (3 * (x**2 + y**2) - 2) * y,
    (3, 1): lambda x, y: math.sqrt(8) * (3 * (x**2 + y**2) - 2) * x,
    (3, -3): lambda x, y: math.sqrt(8) * (3 * x**2 * y - y**3),
    (3, 3): lambda x, y: math.sqrt(8) * (x**3 - 3 * x * y**2),
    (4, 0): lambda x, y: math.sqrt(5) * (6 * (x**2 + y**2) ** 2 - 6 * (x**2 + y**2) + 1),
    (4, 2): lambda x, y: math.sqrt(10) * (4 * (x**2 + y**2) - 3) * (x**2 - y**2),
    (4, 4): lambda x, y: math.sqrt(10) * (x**4 - 6 * x**2 * y**2 + y**4),
}


def random_pupil_points(count=200, seed=1):
    rng = np.random.default_rng(seed)
    rho = torch.from_numpy(np.sqrt(rng.uniform(0, 1, count)))
    return rho, torch.from_numpy(rng.uniform(-math.pi, math.pi, count))


@pytest.mark.parametrize(("index", "mode"), list(enumerate(modes(NOLL), start=1)))
def test_noll_table(index, mode):
    assert noll_to_nm(index) == mode
    assert nm_to_noll(*mode) == index


@pytest.mark.parametrize(("index", "mode"), list(enumerate(modes(ANSI))))
def test_ansi_table(index, mode):
    assert ansi_to_nm(index) == mode
    assert nm_to_ansi(*mode) == index


def test_index_round_trips():
    assert [nm_to_noll(*noll_to_nm(j)) for j in range(1, 61)] == list(range(1, 61))
    assert [nm_to_ansi(*ansi_to_nm(j)) for j in range(60)] == list(range(60))


@pytest.mark.parametrize("mode", BY_HAND)
def test_polynomials_written_by_hand(mode):
    rho, theta = random_pupil_points()
    expected = BY_HAND[mode](rho * theta.cos(), rho * theta.sin())
    assert zernike(*mode, rho, theta) == pytest.approx(expected.numpy(), abs=EXACT)


def test_orthonormal_over_the_disc():
    # Gauss-Legendre in rho and the trapezium rule in theta are exact for these polynomials
    node, weight = np.polynomial.legendre.leggauss(16)
    theta = torch.arange(48, dtype=torch.float64) * (2 * math.pi / 48)
    rho = torch.from_numpy((node + 1) / 2)[:, None].expand(16, 48)
    area = torch.from_numpy(weight / 2)[:, None] * rho * 2 / 48  # of a disc of mean 1
    values = torch.stack([zernike(*noll_to_nm(j), rho, theta.expand(16, 48)) for j in range(1, 46)])
    gram = torch.einsum("iqt,jqt,qt->ij", values, values, area)
    assert gram.numpy() == pytest.approx(np.eye(45), abs=EXACT)


def test_seidel_form_is_reproduced_at_each_pupil_point():
    rho, theta = random_pupil_points()
    rng = np.random.default_rng(2)
    focus, ast, angle = (torch.from_numpy(rng.uniform(-3, 3, 20))[:, None] for _ in range(3))
    expected = focus * rho**2 + ast * (rho * torch.cos(theta - angle)) ** 2
    coefficients = seidel_to_zernike(focus, ast, angle)
    wavefront = sum(c * zernike(*mode, rho, theta) for mode, c in coefficients.items())
    assert wavefront.numpy() == pytest.approx(expected.numpy(), abs=EXACT)


def test_one_wave_of_focus_is_0_289_waves_rms_of_noll_4():
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    coefficients = seidel_to_zernike(one, none, none)
    assert float(coefficients[2, 0]) == pytest.approx(1 / math.sqrt(12), abs=EXACT)
    assert float(coefficients[2, 2]) == float(coefficients[2, -2]) == 0


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (noll_to_nm, (0,)),
        (ansi_to_nm, (-1,)),
        (nm_to_noll, (2, 1)),
        (nm_to_noll, (2, 4)),
        (nm_to_ansi, (-1, 1)),
        (nm_to_ansi, (3, 0)),
        (zernike, (3, 2, torch.ones(1), torch.ones(1))),
    ],
)
def test_refuses_modes_that_do_not_exist(function, arguments):
    with pytest.raises(InputError):
        function(*arguments)
