"""Zernike polynomials, orthonormal (unit rms over the unit disc), stored as (n, m).

Modes with m >= 0 are cosine terms, those with m < 0 sine terms (ANSI Z80.28, Noll 1976). Angles
run from +x (columns, to the right) to +y (rows, downwards). Shajkofci & Liebling (2020) use the
Seidel form W = focus rho^2 + ast (rho cos(theta - angle))^2; `seidel_to_zernike` converts it.
"""

import math

import torch

from psf.errors import InputError

Mode = tuple[int, int]


def noll_to_nm(index: int) -> Mode:
    """(n, m) of a Noll index (1 = piston; R. J. Noll, JOSA 66, 207 (1976), Table I)."""
    if index < 1:
        raise InputError(f"the Noll index is {index}; give 1 (piston) or higher.")
    n = int((math.sqrt(8 * index - 7) - 1) / 2)
    k = index - n * (n + 1) // 2 - 1  # position within order n, from 0
    magnitude = 2 * ((k + n % 2 + 1) // 2) - n % 2
    if magnitude == 0:
        return n, 0
    return n, magnitude if index % 2 == 0 else -magnitude


def nm_to_noll(n: int, m: int) -> int:
    """Noll index of mode (n, m); inverse of `noll_to_nm`."""
    _check_mode(n, m)
    first = n * (n + 1) // 2 + 1
    return next(j for j in range(first, first + n + 1) if noll_to_nm(j) == (n, m))


def ansi_to_nm(index: int) -> Mode:
    """(n, m) of an ANSI/OSA index (0 = piston; ANSI Z80.28)."""
    if index < 0:
        raise InputError(f"the ANSI index is {index}; give 0 (piston) or higher.")
    n = int((math.sqrt(8 * index + 1) - 1) / 2)
    return n, 2 * index - n * (n + 2)


def nm_to_ansi(n: int, m: int) -> int:
    """ANSI/OSA index of mode (n, m), j = (n (n + 2) + m) / 2."""
    _check_mode(n, m)
    return (n * (n + 2) + m) // 2


def zernike(n: int, m: int, rho: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Value of the orthonormal Zernike polynomial (n, m) at polar pupil coordinates.

    Parameters
    ----------
    rho, theta : tensors of one shape
        Pupil radius (1 at the edge) and angle in radians.

    Returns
    -------
    tensor of the same shape; unit mean square over the disc (Noll 1976, Eqs. 1-3).
    """
    _check_mode(n, m)
    magnitude = abs(m)
    radial = torch.zeros_like(rho)
    for k in range((n - magnitude) // 2 + 1):
        coefficient = (-1) ** k * math.factorial(n - k)
        coefficient /= math.factorial(k)
        coefficient /= math.factorial((n + magnitude) // 2 - k)
        coefficient /= math.factorial((n - magnitude) // 2 - k)
        radial = radial + coefficient * rho ** (n - 2 * k)
    if m == 0:
        return math.sqrt(n + 1) * radial
    angular = torch.cos(magnitude * theta) if m > 0 else torch.sin(magnitude * theta)
    return math.sqrt(2 * (n + 1)) * radial * angular


def seidel_to_zernike(
    focus: torch.Tensor, ast: torch.Tensor, angle: torch.Tensor
) -> dict[Mode, torch.Tensor]:
    """Zernike coefficients (waves rms) of W = focus rho^2 + ast (rho cos(theta - angle))^2.

    Parameters
    ----------
    focus, ast : tensors of one shape, waves
    angle : tensor of that shape, radians

    Returns
    -------
    dict from (n, m) to coefficients; the sum of the four modes is exactly W.
    """
    mean_curvature = focus + ast / 2  # because cos^2(a) = 1/2 + cos(2 a)/2
    return {
        (0, 0): mean_curvature / 2,
        (2, 0): mean_curvature / (2 * math.sqrt(3)),
        (2, 2): ast * torch.cos(2 * angle) / (2 * math.sqrt(6)),
        (2, -2): ast * torch.sin(2 * angle) / (2 * math.sqrt(6)),
    }


def _check_mode(n: int, m: int) -> None:
    if n < 0 or abs(m) > n or (n - m) % 2:
        raise InputError(f"({n}, {m}) is not a Zernike mode; give |m| <= n with n - m even.")
