"""Figure of the PSF models, drawn from what `figure_psf.py` has computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Circle, Patch

from common.pictures import add_scale_bar, colour_map, plain_text

WIDTH_INCHES = 12.3  # 1600 px at the 130 dots per inch of `save_figure`
HEADING_INCHES = 0.33  # height of a row's heading
ROW_INCHES = (2.3, 2.12, 2.6, 2.35)  # heights of models, defocus, sections and OTFs with titles
GAMMA = 0.5  # of the intensity: its square root shows rings of 1 % of the peak
SECTION_SHAPE = 0.75  # height / width of an xz section
OTF_FLOOR = 1e-3  # a smaller OTF is invisible in an image
OTF_MARGIN = 1.12  # highest frequency shown, relative to the cut-off
SIGN_COLOURS = ("#e69f00", "0.85", "#0072b2")  # orange, grey, blue: distinct for colour-blind eyes


@dataclass(frozen=True)
class Picture:
    """PSF in the plane of the camera."""

    title: str
    psf: np.ndarray  # (K, K), rows y, columns x
    pixel_um: float


@dataclass(frozen=True)
class Section:
    """PSF along the optical axis."""

    title: str
    axis: str  # the lateral axis, "x" or "y"
    psf: np.ndarray  # (Z, K), intensity at equal light in every plane
    z_um: tuple[float, float]  # first and last plane
    pixel_um: float  # along the lateral axis


@dataclass(frozen=True)
class Transfer:
    """Real optical transfer function."""

    title: str
    otf: np.ndarray  # (F, F), frequency 0 in the middle
    highest: float  # frequency of the outermost samples, cycles/um
    cutoff: float  # cycles/um


@dataclass(frozen=True)
class Gallery:
    """Content of the figure, with a heading of the figure and of each row."""

    heading: str
    headings: tuple[str, str, str, str]
    models: Sequence[Picture]
    defocus: Sequence[Picture]
    sections: Sequence[Section]
    transfers: Sequence[Transfer]


def draw_gallery(gallery: Gallery) -> Figure:
    """Figure of models, defocus, sections and transfer functions in four rows with headings."""
    heights = [h for row in ROW_INCHES for h in (HEADING_INCHES, row)]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.3), layout="constrained")
    figure.suptitle(plain_text(gallery.heading), fontsize=12, fontweight="bold")
    strips = figure.subfigures(len(heights), 1, height_ratios=heights)
    for strip, heading in zip(strips[::2], gallery.headings, strict=True):
        strip.text(0.005, 0.2, heading, fontsize=10.5)
    _draw_pictures(strips[1], gallery.models)
    _draw_pictures(strips[3], gallery.defocus)
    _draw_sections(strips[5], gallery.sections)
    _draw_transfers(strips[7], gallery.transfers)
    names = ("OTF negative (contrast reversed)", f"|OTF| < {OTF_FLOOR:g}", "positive")
    patches = [Patch(color=c, label=n) for c, n in zip(SIGN_COLOURS, names, strict=True)]
    strips[6].legend(
        handles=patches, loc="center right", ncols=3, fontsize=9, frameon=False, columnspacing=1
    )
    return figure


def _draw_pictures(row: SubFigure, pictures: Sequence[Picture]) -> None:
    for axes, picture in zip(row.subplots(1, len(pictures)), pictures, strict=True):
        axes.imshow(
            picture.psf / picture.psf.max(),
            cmap="magma",
            norm=PowerNorm(GAMMA, 0, 1),
            interpolation="nearest",  # single pixels stay visible
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(picture.title, fontsize=9)
        add_scale_bar(axes, picture.pixel_um, picture.psf.shape[1])


def _draw_sections(row: SubFigure, sections: Sequence[Section]) -> None:
    every = row.subplots(1, len(sections))
    for axes, section in zip(every, sections, strict=True):
        half_um = section.psf.shape[1] * section.pixel_um / 2
        step_um = (section.z_um[1] - section.z_um[0]) / (len(section.psf) - 1)
        extent = (section.z_um[0] - step_um / 2, section.z_um[1] + step_um / 2, half_um, -half_um)
        drawn = axes.imshow(
            (section.psf / section.psf.max()).T,  # (K, Z): z to the right
            cmap="magma",
            norm=PowerNorm(GAMMA, 0, 1),
            extent=extent,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_box_aspect(SECTION_SHAPE)
        axes.set_title(section.title, fontsize=9)
        axes.set_xlabel("z (µm)", fontsize=9)
        axes.set_ylabel(f"{section.axis} (µm)", fontsize=9, labelpad=1)
        axes.tick_params(labelsize=8)
    bar = row.colorbar(drawn, ax=every, shrink=0.9, pad=0.01, ticks=(0, 0.01, 0.1, 0.25, 0.5, 1))
    bar.ax.set_yticklabels(("0", "0.01", "0.1", "0.25", "0.5", "1"), fontsize=8)
    bar.set_label("intensity / peak", fontsize=9)


def _draw_transfers(row: SubFigure, transfers: Sequence[Transfer]) -> None:
    every = row.subplots(1, 2 * len(transfers), sharex=True, sharey=True)
    for k, transfer in enumerate(transfers):
        steps = len(transfer.otf) - 1
        edge = transfer.highest * (1 + 1 / steps)
        place = {"extent": (-edge, edge, edge, -edge), "interpolation": "nearest"}
        magnitude, sign = every[2 * k], every[2 * k + 1]
        drawn = magnitude.imshow(
            np.abs(transfer.otf).clip(OTF_FLOOR, 1),
            cmap=colour_map("viridis"),
            norm=LogNorm(OTF_FLOOR, 1),
            **place,
        )
        signs = np.sign(transfer.otf) * (np.abs(transfer.otf) > OTF_FLOOR)
        colours, norm = ListedColormap(SIGN_COLOURS), BoundaryNorm((-1.5, -0.5, 0.5, 1.5), 3)
        sign.imshow(signs, cmap=colours, norm=norm, **place)
        magnitude.set_title(f"{transfer.title}: |OTF|", fontsize=9)
        sign.set_title(f"{transfer.title}: sign", fontsize=9)
        for axes, colour in ((magnitude, "white"), (sign, "black")):
            _frequency_axes(axes, transfer.cutoff, colour)
    every[0].set_ylabel("$f_y$ (cycles/µm)", fontsize=9)
    bar = row.colorbar(drawn, ax=every, shrink=0.8, pad=0.01)
    bar.set_label("|OTF| (log scale)", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _frequency_axes(axes: Axes, cutoff: float, colour: str) -> None:
    axes.add_patch(Circle((0, 0), cutoff, fill=False, ls="--", lw=1, color=colour))
    limit = OTF_MARGIN * cutoff
    axes.set(xlim=(-limit, limit), ylim=(limit, -limit))
    axes.set_xlabel("$f_x$ (cycles/µm)", fontsize=9)
    axes.tick_params(labelsize=8)
