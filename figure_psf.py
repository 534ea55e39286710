"""Draw the PSF models of a microscope: on the camera, through focus, in section, as OTFs.

    python figure_psf.py --out results/figure_psf.png
    python figure_psf.py --na 1.3 --wavelength-um 0.6 --pixel-size-um 0.1 --light vectorial \
        --layers.n-immersion 1.515 --depth-um 10 --out results/figure_psf_oil.png

Layers and depth are those of the model `gibson_lanni`. If they cause no aberration, the sections
show an example of a deep particle, which its title describes.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from common.command import run
from common.files import check_out_folder
from common.gallery import OTF_MARGIN, Gallery, Picture, Section, Transfer, draw_gallery
from common.pictures import save_figure
from psf.blur import transfer_functions
from psf.errors import InputError
from psf.gibson_lanni import Layers, layered_wavefront
from psf.light import warn_if_scalar_is_off
from psf.microscope import Microscope, Optics
from psf.model import MODEL_NAMES, PsfModel, psf_model
from psf.synthesis import synthesize_with_loss

SUFFIXES = (".png", ".pdf")
HALF_FIELDS = (4, 5, 6, 7)  # lambda/NA, tried in turn until a picture holds enough of the light
LOST_LIGHT = 0.03  # share of the light that may lie outside a picture
CAMERA_PX = (25, 301)  # fewest and most camera pixels along a picture
DISPLAY_PX = (
    0.08  # pixel of the pictures through focus and of the sections, lambda/NA: smooth rings
)
Z_STEPS = (-4, -2, -1, 0, 1, 2, 4)  # planes through focus, in rounded depths of field
SECTION_STEPS = 6  # half the z range of a section, in rounded depths of field
SECTION_PLANES = 181  # odd, so that one plane lies at z = 0
SECTION_HALF_FIELD = 4.0  # lambda/NA
VISIBLE_WAVES = 0.1  # aberration at the edge of the pupil; two PSFs that differ by less look alike
EXAMPLE_WAVES = 1.0  # primary spherical aberration of the example of a deep particle
AST_WAVES_RMS = 0.2  # of the astigmatic section: focal lines 2 depths of field apart
OTF_PX, OTF_SIZE = 1 / 8, 401  # pixel in lambda/NA (half of Nyquist's) and edge of the OTFs' grid
OTF_FOCUS_WAVES = (0.0, 1.0, 2.0)  # in focus and at two distances from it


@dataclass(frozen=True)
class Config:
    """Settings of the gallery."""

    out: Path = Path("results/figure_psf.png")  # file to write, .png or .pdf
    microscope: Annotated[Microscope, tyro.conf.arg(name="")] = field(default_factory=Microscope)
    layers: Layers = field(default_factory=Layers)
    depth_um: float = 0.0  # depth of the particle below the coverslip, um
    light: Literal["scalar", "aplanatic", "vectorial"] = "scalar"  # vectorial for NA / n > 0.38

    @property
    def unit_um(self) -> float:
        """Lateral unit lambda/NA, in which PSFs of all microscopes have the same size."""
        return self.microscope.wavelength_um / self.microscope.na

    @property
    def z_unit_um(self) -> float:
        """Depth of field, rounded to one digit."""
        depth_um = self.microscope.depth_of_field_um
        return round(depth_um, -math.floor(math.log10(depth_um)))

    @property
    def section_half_um(self) -> float:
        """Half the z range of the sections."""
        return SECTION_STEPS * self.z_unit_um

    @property
    def layered(self) -> PsfModel:
        """Model of the layers and the depth of the command line."""
        return psf_model(
            "gibson_lanni", layers=self.layers, depth_um=self.depth_um, light=self.light
        )

    @property
    def matched(self) -> Layers:
        """Layers without mismatch, with the coverslip of the command line."""
        return Layers(n_coverslip=self.layers.n_coverslip)


def number(value: float, signed: bool = False) -> str:
    """Number with up to three digits and a typographic minus."""
    text = f"{value:+.3g}" if signed and value else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def typical_models(config: Config) -> list[tuple[PsfModel, list[float], str]]:
    """Every model with a label, and the label as text."""
    z_um = 2 * config.z_unit_um
    ast, angle = 1.5, math.radians(30)
    examples = {
        "gaussian1d": ([4.0], "FWHM 4 px"),
        "gaussian2d": ([7.0, 3.0], "FWHM x 7 px, y 3 px"),
        "zernike1d": ([1.5], "focus 1.5 waves"),
        "zernike2d": (
            [0.5, ast * math.cos(2 * angle), ast * math.sin(2 * angle)],
            "focus 0.5 waves,\nast 1.5 waves at 30°",
        ),
        "astigmatic": ([-1.0], f"focus {number(-1)} waves,\nlens 1 wave along x"),
        "gibson_lanni": ([z_um], f"z {number(z_um, True)} µm,\n{number(config.depth_um)} µm deep"),
        "zernike": ([0.2], "coma (Noll 8)\n0.2 waves rms"),
    }
    models = {
        "astigmatic": psf_model("astigmatic", known_ast_waves=1.0, light=config.light),
        "gibson_lanni": config.layered,
        "zernike": psf_model("zernike", modes=((3, 1),), light=config.light),
    }
    for name in set(MODEL_NAMES) - set(models):
        light = "scalar" if name.startswith("gaussian") else config.light
        models[name] = psf_model(name, light=light)
    return [(models[name], *examples[name]) for name in MODEL_NAMES]


def at_eye(config: Config, pixel: float = DISPLAY_PX) -> Microscope:
    """The microscope with a finer pixel, given in lambda/NA, for display."""
    return replace(config.microscope, pixel_size_um=pixel * config.unit_um)


def half_field(config: Config, model: PsfModel, labels: torch.Tensor) -> float:
    """First of HALF_FIELDS that holds enough light at these labels (N, P), or the last one."""
    for half in HALF_FIELDS:
        size = 2 * round(half / DISPLAY_PX) + 1
        _, lost = synthesize_with_loss(model, labels, at_eye(config), size, False)
        if float(lost.max()) <= LOST_LIGHT:
            break
    return half


def model_pictures(config: Config) -> tuple[list[Picture], float, str]:
    """Each model in camera pixels, the largest share of light outside, and the model with it."""
    typical = [(m, torch.tensor([label]), text) for m, label, text in typical_models(config)]
    # gibson_lanni does not decide: layers may spread light so far that other PSFs look like points
    fitted = [(m, label) for m, label, _ in typical if m.unit == "waves"]
    half = max(half_field(config, m, label) for m, label in fitted)
    pixel_um = config.microscope.pixel_size_um
    fewest, most = CAMERA_PX
    size = min(max(2 * math.ceil(half * config.unit_um / pixel_um) + 1, fewest), most)
    pictures, lost_by = [], {}
    for model, label, text in typical:
        psfs, lost = synthesize_with_loss(model, label, config.microscope, size)
        pictures.append(Picture(f"{model.name}\n{text}", psfs[0].numpy(), pixel_um))
        lost_by[model.name] = float(lost)
    worst = max(lost_by, key=lost_by.get)
    return pictures, lost_by[worst], worst


def defocus_pictures(config: Config) -> tuple[list[Picture], float]:
    """Pictures on both sides of focus, and the largest share of light outside."""
    microscope = at_eye(config)
    z_um = torch.tensor([[step * config.z_unit_um] for step in Z_STEPS])
    size = 2 * round(half_field(config, config.layered, z_um) / DISPLAY_PX) + 1
    psfs, lost = synthesize_with_loss(config.layered, z_um, microscope, size, False)
    intensities = psfs * (1 - lost)[:, None, None]
    ideal = ideal_peak(config)
    pictures = [
        Picture(
            f"z {number(float(z), True)} µm\n{peak_text(each, ideal)}",
            each.numpy(),
            microscope.pixel_size_um,
        )
        for z, each in zip(z_um, intensities, strict=True)
    ]
    return pictures, float(lost.max())


def ideal_peak(config: Config) -> float:
    """Peak intensity in focus without aberration."""
    model = psf_model("gibson_lanni", layers=config.matched, light=config.light)
    psf, lost = synthesize_with_loss(model, torch.zeros(1, 1), at_eye(config), 1, False)
    return float(psf * (1 - lost))


def peak_text(intensity: torch.Tensor, ideal: float) -> str:
    """Peak of an intensity in per cent of the ideal peak, as text with two digits."""
    share = 100 * float(intensity.max()) / ideal
    return f"peak {share:.0f}% of ideal" if share >= 10 else f"peak {share:.1f}% of ideal"


def is_aberrated(config: Config) -> bool:
    """Whether the layers cause a visible aberration at paraxial focus."""
    zero, edge = torch.zeros(1), torch.ones(1)
    depth_um = torch.tensor([config.depth_um])
    optics = Optics.of(config.microscope)
    waves = layered_wavefront(config.layers, optics, zero, depth_um, edge)
    return bool(waves.abs() > VISIBLE_WAVES)


def deep_example(config: Config) -> tuple[Layers, float]:
    """Layers and depth of a particle with `EXAMPLE_WAVES` of primary spherical aberration.

    A depth d under an objective for n_i causes d NA^4 (1/n_i^2 - 1/n_s^2) / (8 n_s) of it: the
    term in rho^4 of the formula in `psf.gibson_lanni`.
    """
    microscope = config.microscope
    sample = microscope.refractive_index
    # dry, water or oil: the first index above the NA that differs from the sample's
    choices = (n for n in (1.0, 1.33, 1.515) if n > microscope.na and abs(n - sample) > 0.05)
    immersion = next(choices, sample + 0.1)
    mismatch = abs(1 / immersion**2 - 1 / sample**2) / (8 * sample)
    depth_um = EXAMPLE_WAVES * microscope.wavelength_um / (microscope.na**4 * mismatch)
    depth_um = round(depth_um, 1 - math.ceil(math.log10(depth_um)))
    working_um = max(150.0, 2 * depth_um * immersion / sample)
    layers = replace(config.matched, n_immersion=immersion, immersion_um_design=working_um)
    return layers, depth_um


def section_row(config: Config) -> list[Section]:
    """Sections of plain defocus, of a deep particle and of an astigmatic one."""
    layers, depth_um, origin = config.layers, config.depth_um, ""
    if not is_aberrated(config):
        layers, depth_um = deep_example(config)
        origin = "example: "
    immersion = layers.n_immersion or config.microscope.refractive_index
    plain = psf_model("gibson_lanni", layers=config.matched, light=config.light)
    deep = psf_model("gibson_lanni", layers=layers, depth_um=depth_um, light=config.light)
    astigmatic = psf_model(
        "gibson_lanni", modes=((2, 2),), layers=config.matched, light=config.light
    )
    titles = (
        "plain defocus",
        f"{origin}{depth_um:g} µm deep, immersion n {immersion:g}",
        f"astigmatism {AST_WAVES_RMS:g} waves rms, xz",
        f"astigmatism {AST_WAVES_RMS:g} waves rms, yz",
    )
    intensities = [through_focus(config, model) for model in (plain, deep, astigmatic)]
    middle = intensities[0].shape[1] // 2
    ideal = ideal_peak(config)
    shown = [
        ("x", intensities[0][:, middle]),
        ("x", intensities[1][:, middle]),
        ("x", intensities[2][:, middle]),
        ("y", intensities[2][:, :, middle]),
    ]
    half_um, pixel_um = config.section_half_um, at_eye(config).pixel_size_um
    return [
        Section(
            f"{title}\n{peak_text(psf, ideal)}", axis, psf.numpy(), (-half_um, half_um), pixel_um
        )
        for title, (axis, psf) in zip(titles, shown, strict=True)
    ]


def through_focus(config: Config, model: PsfModel) -> torch.Tensor:
    """Intensity (Z, K, K) of a stack with equal light in every plane."""
    half_um = config.section_half_um
    labels = torch.full((SECTION_PLANES, len(model.label_names)), AST_WAVES_RMS)
    labels[:, 0] = torch.linspace(-half_um, half_um, SECTION_PLANES)
    size = 2 * round(SECTION_HALF_FIELD / DISPLAY_PX) + 1
    psfs, lost = synthesize_with_loss(model, labels, at_eye(config), size, False)
    return psfs * (1 - lost)[:, None, None]


def transfer_row(config: Config) -> list[Transfer]:
    """OTFs of the optics without the camera pixel, in and out of focus."""
    focus = torch.tensor(OTF_FOCUS_WAVES)[:, None]
    microscope = at_eye(config, OTF_PX)
    shape = (OTF_SIZE, OTF_SIZE)
    model = psf_model("zernike1d", light=config.light)
    half = transfer_functions(model, focus, microscope, shape)
    otf = torch.fft.fft2(torch.fft.irfft2(half, s=shape)).real  # the PSF is symmetric
    along = torch.sinc(torch.fft.fftfreq(OTF_SIZE))
    otf = torch.fft.fftshift(otf / (along[:, None] * along), dim=(1, 2))  # without the pixel
    cutoff = 2 / config.unit_um
    step = 1 / (OTF_SIZE * microscope.pixel_size_um)
    kept = math.ceil(OTF_MARGIN * cutoff / step)
    inner = slice(OTF_SIZE // 2 - kept, OTF_SIZE // 2 + kept + 1)
    names = ["in focus" if w == 0 else f"{w:g} wave{'s' * (w > 1)}" for w in OTF_FOCUS_WAVES]
    return [
        Transfer(name, each[inner, inner].numpy(), kept * step, cutoff)
        for name, each in zip(names, otf, strict=True)
    ]


def build_gallery(config: Config) -> Gallery:
    """Everything that the figure shows, computed."""
    microscope = config.microscope
    models, models_lost, worst = model_pictures(config)
    defocus, defocus_lost = defocus_pictures(config)
    heading = (
        f"NA {microscope.na:g}, wavelength {microscope.wavelength_um:g} µm, "
        f"pixel {microscope.pixel_size_um:g} µm, sample n {microscope.refractive_index:g}, "
        f"immersion n {config.layers.n_immersion or microscope.refractive_index:g}, "
        f"{config.light} light"
    )
    headings = (
        "PSF models in camera pixels (square root of intensity, each to its own peak; "
        f"at most {models_lost:.0%} of the light is outside: {worst})",
        f"gibson_lanni through focus, {config.depth_um:g} µm deep (square root of intensity, "
        f"each to its own peak; pixels of {DISPLAY_PX * config.unit_um:.2g} µm for display; "
        f"at most {defocus_lost:.0%} of the light is outside)",
        "gibson_lanni in section (square root of intensity; z > 0: emitter farther from the "
        "objective; z and the lateral axis differ in scale)",
        "OTF of zernike1d without the camera pixel (dashed: cut-off, "
        f"2 NA / wavelength = {2 / config.unit_um:.3g} cycles/µm)",
    )
    return Gallery(heading, headings, models, defocus, section_row(config), transfer_row(config))


def main(config: Config) -> None:
    """Compute, draw and write the figure."""
    if config.out.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out is {config.out}; give a name that ends in .png or .pdf.")
    check_out_folder(config.out.parent)
    warn_if_scalar_is_off(config.light, Optics.of(config.microscope))
    save_figure(config.out, draw_gallery(build_gallery(config)))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
