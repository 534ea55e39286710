"""Layers between objective and particle, and the wavefront that they cause.

The model of S. F. Gibson & F. Lanni, JOSA A 8, 1601 (1991), in the form of J. Li, F. Xue & T. Blu,
JOSA A 34, 1029 (2017), Eq. (3). The optical path difference between the real and the design
system, for the ray through the pupil radius rho, is

    OPD = d P(n_s) + t_g P(n_g) - t_g* P(n_g*) + t_i P(n_i) - t_i* P(n_i*),
    P(n) = sqrt(n^2 - NA^2 rho^2),

where d is the depth of the particle below the coverslip, the indices s, g, i stand for sample,
coverslip (glass) and immersion, and stars mark design values. The stage sets the thickness of the
immersion,

    t_i = n_i (t_i* / n_i* + t_g* / n_g* - t_g / n_g - d / n_s) + z.

At z = 0 the particle is in paraxial focus: OPD has no term in rho^2. z > 0 moves the sample away
from the objective. If all indices are equal, z is the defocus of `psf.model`.
"""

import math
from dataclasses import dataclass, fields

import torch

from psf.errors import InputError
from psf.microscope import Optics, plain

LAYER_INDICES = ("n_immersion", "n_coverslip", "n_sample")  # from the objective to the object


@dataclass(frozen=True)
class Layers:
    """Immersion, coverslip and sample: their actual values and those of the objective's design.

    None stands for the microscope's refractive index (n_immersion, n_sample) or, for a design
    value, for the actual value. The coverslip matters only if it differs from its design. In
    Python a number may also be a tensor without axes; gradients then flow through it.

    Raises
    ------
    InputError
        If a number is not positive and finite.
    """

    n_immersion: float | None = None  # index; air 1.0, water 1.33, oil 1.515; None: microscope's
    n_immersion_design: float | None = None  # index that the objective needs; None: n_immersion
    n_coverslip: float = 1.515  # index of the glass
    n_coverslip_design: float | None = None  # index that the objective needs; None: n_coverslip
    n_sample: float | None = None  # index around the particle; None: the microscope's
    immersion_um_design: float = 150.0  # working distance of the objective, um
    coverslip_um: float = 170.0  # thickness of the glass, um
    coverslip_um_design: float | None = None  # thickness by design, um; None: coverslip_um

    def __post_init__(self) -> None:
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        for name, value in ((n, plain(v)) for n, v in given if v is not None):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; give a positive number.")

    def of(self, optics: Optics) -> dict[str, torch.Tensor]:
        """Every number by name, of shape (1,) or (N,), with the value that each None stands for.

        Numbers on a GPU are not checked, since reading them would wait for it. `psf.synthesis`
        checks its copy on the CPU.

        Raises
        ------
        InputError
            If n_sample contradicts the microscopes, or an NA is not below an index (it names
            which).
        """
        index = optics.refractive_index
        names = (*LAYER_INDICES, "immersion_um_design", "coverslip_um")
        filled = {name: _or(getattr(self, name), index) for name in names}
        for name in ("n_immersion", "n_coverslip", "coverslip_um"):
            filled[f"{name}_design"] = _or(getattr(self, f"{name}_design"), index, filled[name])
        if index.device.type == "cpu":
            self._check_indices(optics, filled)
        return filled

    def _check_indices(self, optics: Optics, filled: dict[str, torch.Tensor]) -> None:
        index = optics.refractive_index
        if self.n_sample is not None and bool((index - plain(self.n_sample)).abs().max() > 1e-9):
            raise InputError(
                f"n_sample {plain(self.n_sample):g} is not the microscope's refractive index "
                f"{plain(index[0]):g}. Both are the medium around the object; give one value."
            )
        named = ("n_coverslip_design", "n_immersion_design", *LAYER_INDICES[::-1])
        for index, name in {filled[name]: name for name in named}.items():  # each tensor once
            if bool((optics.na >= index).any()):
                raise InputError(
                    f"NA {plain(optics.na.max()):g} is not below {name} {plain(index.min()):g}: "
                    "light of that angle does not pass the layer. Give a smaller effective NA or "
                    "correct the index."
                )


def _or(
    value: float | None, like: torch.Tensor, default: torch.Tensor | None = None
) -> torch.Tensor:
    """The value as a tensor (1,); the default if it is None."""
    if value is None:
        return like if default is None else default
    if isinstance(value, torch.Tensor):
        return value.to(like).reshape(1)
    return torch.full_like(like[:1], value)


def immersion_change_um(layers: dict[str, torch.Tensor], depth_um: torch.Tensor) -> torch.Tensor:
    """Change t_i - t_i* of the immersion that brings a particle at this depth to paraxial focus.

    The difference is computed directly, so that a long working distance costs no digits.
    """
    reduced = (
        layers["coverslip_um_design"] / layers["n_coverslip_design"]
        - layers["coverslip_um"] / layers["n_coverslip"]
        - depth_um / layers["n_sample"]
    )
    stretch = (layers["n_immersion"] - layers["n_immersion_design"]) / layers["n_immersion_design"]
    return stretch * layers["immersion_um_design"] + layers["n_immersion"] * reduced


def layered_wavefront(
    layers: Layers,
    optics: Optics,
    z_um: torch.Tensor,
    depth_um: torch.Tensor,
    rho: torch.Tensor,
) -> torch.Tensor:
    """Wavefront W = -OPD / lambda in waves, without piston: (N, *S) at pupil radii of shape S.

    Parameters
    ----------
    z_um, depth_um : (N,) tensors, stage defocus from paraxial focus and particle depth
    rho : tensor of shape S, pupil radius

    Raises
    ------
    InputError
        If an NA is not below an index, a depth is negative, or the thickness of the immersion
        would be negative.
    """
    filled = layers.of(optics)
    change_um = immersion_change_um(filled, depth_um) + z_um
    if depth_um.device.type == "cpu":  # see `Layers.of`
        _check_working_distance(filled, filled["immersion_um_design"] + change_um, depth_um)

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, *[1] * rho.ndim)

    sine2 = (column(optics.na) * rho) ** 2

    def path(index: str) -> torch.Tensor:
        """P(n) - n, in a form in which no digits cancel."""
        n = column(filled[index])
        return -sine2 / (n + torch.sqrt(n**2 - sine2))

    # t P(n) - t* P(n*) = (t - t*) P(n) + t* (P(n) - P(n*)); values as designed contribute nothing
    terms = [(depth_um, path("n_sample")), (change_um, path("n_immersion"))]
    for name in ("immersion", "coverslip"):
        if filled[f"n_{name}"] is not filled[f"n_{name}_design"]:
            changed = path(f"n_{name}") - path(f"n_{name}_design")
            terms.append((filled[f"{name}_um_design"], changed))
    if filled["coverslip_um"] is not filled["coverslip_um_design"]:
        thicker = filled["coverslip_um"] - filled["coverslip_um_design"]
        terms.append((thicker, path("n_coverslip")))
    difference = sum(column(thickness) * each for thickness, each in terms)
    return -difference / column(optics.wavelength_um)


def _check_working_distance(
    layers: dict[str, torch.Tensor], immersion_um: torch.Tensor, depth_um: torch.Tensor
) -> None:
    if bool((depth_um < 0).any()):
        raise InputError(
            f"depth_um {plain(depth_um.min()):g} is negative; give the distance from the coverslip "
            "into the sample."
        )
    thinnest = plain(immersion_um.min())
    if thinnest < 0:
        deepest = plain(depth_um.max())
        raise InputError(
            f"a particle {deepest:g} um deep is beyond the working distance: the immersion, "
            f"{plain(layers['immersion_um_design'].max()):g} um by design, would be "
            f"{thinnest:.3g} um thick. Check depth_um, z_um and immersion_um_design."
        )
