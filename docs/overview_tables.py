"""Tables that sum everything up: beside the paper, and the ten numbers of the README."""

from statistics import fmean
from typing import Any

from csv_tables import Table, linked, row, rows, span, written
from network_tables import BAYES, DEPTH, LIGHT, REFERENCE, SHIPPED, STACKS, TILTED
from restoration_tables import CASES, OURS, SUMMARY, lead
from speed_tables import FOCUS_MAPS, MAPPING, PSFS

NOISE = "noise.csv"
ROBUST = ("rotation", "global illumination", "axial illumination")  # degradations without noise
LOWEST = "lowest R², object turned, lamp dimmed or corners darkened"
TURNED = "lowest R² for an object turned by any angle, `zernike1d`"
LEAD = "the same, above the better blind method"


def _by_light(file: str, column: str, spec: str, **equal: Any) -> str:
    """Values of a column under 1000, 100 and 10 photons, with commas between them."""
    return ", ".join(f"{row(file, condition=one, **equal)[column]:{spec}}" for one in LIGHT)


def _on_textures(estimator: str) -> str:
    return ", ".join(
        f"{row(BAYES, estimator=estimator, contrast=0.2, photons=photons)['r2']:.3f}"
        for photons in (1000, 100, 10)
    )


def _noise_free(**equal: Any) -> str:
    """Least and largest noise-free R² of the shipped networks."""
    chosen = rows(SHIPPED, condition="noise-free", images="all", **equal)
    return span([entry["r2"] for entry in chosen], ".3f")


def lowest_r2(*degradations: str) -> float:
    """Lowest R² of `zernike1d` over all levels of some degradations."""
    return min(e["r2"] for e in rows(NOISE, network="zernike1d", degradation=degradations))


def _of_all(column: str, spec: str, *files: str) -> str:
    """Least and largest value of a column over networks and noise."""
    return span([e[column] for file in files for e in rows(file, images="all")], spec)


def beside_the_paper() -> Table:
    """Claims of the paper and of Deep-blur beside what was reached here."""
    focus = {"network": "zernike1d", "parameter": "focus", "images": "all"}
    ideal = [row(SHIPPED, condition=one, **focus) for one in ("noise-free", "8-bit")]
    lowest = lowest_r2(*ROBUST)
    return written(
        f"""
        | the paper | here | file
        R² of focus in ideal conditions, noise-free and at 8 bit | up to 0.99 | {ideal[0]["r2"]:.3f}, {ideal[1]["r2"]:.3f} | {linked(SHIPPED)}
        R² of signed focus with a cylindrical lens, noise-free | | {_noise_free(network="astigmatic")} | the same
        R² of astigmatism, noise-free | | {_noise_free(parameter=("ast_cos2", "ast_sin2"))} | the same
        R² of Gaussian width, noise-free | | {_noise_free(unit="px")} | the same
        R² of focus at 1000, 100, 10 photons per pixel | robust | {_by_light(SHIPPED, "r2", ".3f", **focus)} | the same
        the same at the optics of the paper | one setting | {_by_light(REFERENCE, "r2", ".3f", **focus)} | {linked(REFERENCE)}
        the same on Gaussian textures of contrast 0.2 | | {_on_textures("zernike1d")} | {linked(BAYES)}
        the same, Bayes-optimal estimate | | {_on_textures("Bayes")} | the same
        SNR of the PSF, median, noise-free | Deep-blur 2024: 13 dB | {ideal[0]["psf_snr_db"]:.0f} dB | {linked(SHIPPED)}
        SNR of the PSF, median, at 1000, 100, 10 photons | Deep-blur 2024, strong noise: 8 dB | {_by_light(SHIPPED, "psf_snr_db", ".0f", **focus)} dB | the same
        true values within the 68 % error bars, by network and noise | no error bars | {_of_all("coverage_68", ".0%", SHIPPED)} | the same
        the same, `_tilted` | no error bars | {_of_all("coverage_68", ".0%", TILTED)} | {linked(TILTED)}
        true values within the 95 % error bars | no error bars | {_of_all("coverage_95", ".0%", SHIPPED)} | {linked(SHIPPED)}
        the same, `_tilted` | no error bars | {_of_all("coverage_95", ".0%", TILTED)} | {linked(TILTED)}
        {LOWEST} | robust | {lowest:.4f} | {linked(NOISE)}
        area under the ROC curve, patches without content | flagged | {_of_all("content_auc", ".3f", SHIPPED, TILTED)} | {linked(SHIPPED)}, {linked(TILTED)}
        """,
        (SHIPPED, TILTED, REFERENCE, BAYES, NOISE),
        derived=(LOWEST,),
    )


def ten_numbers() -> Table:
    """What the README shows first."""

    def r2(network: str, condition: str) -> str:
        same = {"parameter": "focus", "images": "all", "condition": condition}
        return f"{row(TILTED, network=network, **same)['r2']:.3f}"

    mitochondria = {"stack": "dfnn_mitochondria", "patches": "content"}
    stack = row(STACKS, network="focus", context="stack", **mitochondria)
    tilted = row(DEPTH, model="astigmatic", photons=1000, degrees=3)
    ours = row(SUMMARY, photons=1000, objects="all", method=OURS)
    large = "2048 x 2048 px, stride 32"
    maps = [row(file, what=large)["seconds"] for file in (FOCUS_MAPS, MAPPING)]
    return written(
        f"""
        what, on held-out images | value | the paper | command
        R² of focus, `zernike1d_tilted`, noise-free | {r2("zernike1d_tilted", "noise-free")} | up to 0.99 | `benchmark_models.py`, [arguments](docs/results.md#shipped-networks)
        the same, 1000 photons per pixel | {r2("zernike1d_tilted", "1000 photons")} | | the same
        R² of signed focus, `astigmatic_tilted`, 1000 photons per pixel | {r2("astigmatic_tilted", "1000 photons")} | | the same
        real stack of hazy mitochondria, `focus`: rank correlation through z, rms | {stack["rank_within"]:.2f}, {stack["rms_um"]:.2f} µm | | `benchmarks/real_stacks.py`, [table](docs/results.md#real-focal-stacks)
        {TURNED} | {lowest_r2("rotation"):.4f} | | `benchmark_models.py --noise`, [arguments](docs/results.md#noise-rotation-and-illumination)
        depth of a plane tilted by 3°, with the lens, 1000 photons, rms | {tilted["profile_rms_um"]:.2f} µm | 2 µm | `python figure_depth.py`
        SNR gain of the restoration, 1000 photons | {ours["snr_gain_db"]:.2f} dB | | `python figure_deconvolution.py`
        {LEAD} | {fmean(lead(1000)):.2f} dB | up to 2.1 dB | the same
        PSFs per second, one thread, 127 x 127 px | {row(PSFS, program="ours, points")["psf_per_second"]:sig3} | | `python benchmarks/psf_synthesis.py`
        map of 2048 x 2048 px, stride 32, two cores: `focus`, `zernike1d` | {maps[0]:.1f} s, {maps[1]:.1f} s | | `python benchmarks/mapping.py --checkpoint focus`; without it `zernike1d`
        """,
        (TILTED, STACKS, NOISE, DEPTH, CASES, SUMMARY, PSFS, MAPPING, FOCUS_MAPS),
        derived=(TURNED, LEAD),
    )
