"""Tables of restorations, of speed, and the ten numbers of the README."""

from math import sqrt
from statistics import fmean, median, stdev

from network_tables import DEPTH, NOISE, STACKS, TILTED, largest_loss
from scipy.special import stdtrit
from tables import RECORDED, Number, Row, Table, row, rows, span, table, written

CASES, SUMMARY = "deconvolution.csv", "deconvolution_summary.csv"
PROCESSED = "processed_images_summary.csv"
TISSUE, TISSUE_MEANS = "real_restoration.csv", "real_restoration_summary.csv"
HELD_OUT = "held_out_photons.csv"
PSFS, GENERATION = "benchmark_psf_synthesis.csv", "benchmark_generation.csv"
TRAINING, MAPPING = "benchmark_training.csv", "benchmark_mapping.csv"
SPEED, LARGE = "benchmark_deconvolution.csv", "benchmark_deconvolution_large.csv"
FOCUS_MAPS = f"{RECORDED}/focus_maps.csv"
OURS, ORACLE = "ours, estimated map", "ours, true map"
BLIND = ("blind Richardson-Lucy", "blind total variation")
DEEPINV = "deepinv Richardson-Lucy, estimated map"
METHODS = (
    "scikit-image Richardson-Lucy, mean of the true PSFs",
    "scikit-image unsupervised Wiener, mean of the true PSFs",
    *BLIND,
    "weights on the blurred image (2018), estimated map",
    DEEPINV,
    "ours, total variation, estimated map",
    OURS,
    ORACLE,
)
TURNED = "largest loss of R² for an object turned by any angle, `zernike1d`"
LEAD = "the same, above the better blind method"
HARM_DB = 0.1  # smaller losses of SNR cannot be seen


def _restoration(photons: int) -> Table:
    """Gain, quality and resolution of every method at a number of photons."""
    columns = {
        f"method, {photons} photons per pixel": "{method}",
        "gain": "{snr_gain_db:+.2f} ± {interval_95_db:.2f}",
        "PSNR": "{psnr_centre_db:.1f}",
        "SSIM": "{ssim:.2f}",
        "FRC, pair": "{frc_pair_um:.2f}",
        "FRC, truth": "{frc_truth_um:.2f}",
        "seconds": "{seconds:.1f}",
    }
    lines = rows(SUMMARY, photons=photons, objects="all", method=METHODS)
    return table(lines, columns, (SUMMARY,))


def restoration_1000() -> Table:
    """Restorations at 1000 photons per pixel."""
    return _restoration(1000)


def restoration_100() -> Table:
    """Restorations at 100 photons per pixel."""
    return _restoration(100)


def restoration_by_object() -> Table:
    """Gain of our restoration by kind of object."""
    names = {"photograph": "photographs", "micrograph": "real micrographs"}
    names |= {"procedural": "procedural"}
    lines = []
    for photons in (1000, 100):
        line: Row = {"photons": photons}
        for kind in names:
            line[kind] = row(SUMMARY, photons=photons, objects=kind, method=OURS)
        lines.append(line)
    gain = "{{{0}[snr_gain_db]:+.2f}} ± {{{0}[interval_95_db]:.2f}} ({{{0}[images]:.0f}} images)"
    columns = {"gain of ours, estimated map": "{photons} photons"}
    return table(lines, columns | {names[kind]: gain.format(kind) for kind in names}, (SUMMARY,))


def _gains(method: str, photons: int, column: str = "snr_gain_db") -> list[float]:
    """Gains of a method, one per image, in the order of the images."""
    found = rows(CASES, method=method, photons=photons)
    return [entry[column] for entry in sorted(found, key=lambda entry: entry["index"])]


def _differences(method: str, photons: int) -> list[float]:
    """What ours gains above a method, one value per image."""
    pairs = zip(_gains(OURS, photons), _gains(method, photons), strict=True)
    return [ours - other for ours, other in pairs]


def lead(photons: int) -> list[float]:
    """What ours gains above the blind method with the highest mean gain."""
    return _differences(max(BLIND, key=lambda name: fmean(_gains(name, photons))), photons)


def with_width(values: list[float]) -> str:
    """Mean with the half width of its 95 % interval over images (Student's t)."""
    count = len(values)
    width = float(stdtrit(count - 1, 0.975)) * stdev(values) / sqrt(count)
    return f"{fmean(values):.2f} ± {width:.2f}"


def _share(values: list[bool]) -> str:
    return f"{sum(values)} of {len(values)}"


def restoration_aims() -> Table:
    """Lead over blind methods, loss by the estimated map, and harm done."""
    lines = []
    for photons in (1000, 100):
        loss = [-value for value in _differences(ORACLE, photons)]
        sharp = [e for e in _gains(OURS, photons, "snr_gain_sharp_db") if e == e]
        lines.append(
            (
                with_width(lead(photons)),
                with_width(loss),
                f"{median(loss):.2f}",
                _share([gain < -HARM_DB for gain in _gains(OURS, photons)]),
                _share([gain < -HARM_DB for gain in sharp]),
                _share([value > 0 for value in _differences(DEEPINV, photons)]),
            )
        )
    names = (
        "lead over the best blind method, dB (the paper: up to 2.1)",
        "loss against the true map, mean, dB",
        "loss against the true map, median, dB",
        "images worse than their input by more than 0.1 dB",
        "images that lose more than 0.1 dB where the PSF is sharp",
        "images in which ours is ahead of deepinv's Richardson-Lucy",
    )
    aims = ("2.6 / 1.6", "0.5 / 0.4", "", "0", "0", "38 of 40")
    header = ("", "1000 photons", "100 photons", "aim")
    cells = tuple(zip(names, *lines, aims, strict=True))
    return Table(header, cells, (CASES,), derived=header[1:])


def processed_images() -> Table:
    """Restorations of images that other programs had processed."""
    columns = {
        "image": "{kind}",
        "SNR before, dB": "{snr_before_db:.2f}",
        "after": "{snr_after_db:.2f}",
        "mean gain": "{gain_db:+.2f}",
        "least gain": "{least_gain_db:+.2f}",
        "worse by more than 0.1 dB": "{worse:.0f} of {images:.0f}",
    }
    # A format string would read the dot in the name of this column as an attribute.
    lines = [line | {"worse": line["worse_by_0.1_db"]} for line in rows(PROCESSED)]
    return table(lines, columns, (PROCESSED,))


TISSUE_METHODS = {
    "ours": "ours",
    "ours, total variation": "ours, total variation",
    "blind total variation": "blind total variation",
    "deepinv Richardson-Lucy": "deepinv Richardson-Lucy, our map",
    "weights on the blurred image (2018)": "weights on the blurred image (2018), our map",
    "blind Richardson-Lucy": "blind Richardson-Lucy",
}


def real_tissue() -> Table:
    """Gains on a real tissue section against its sharpest plane."""
    steps = tuple(sorted(e["steps"] for e in rows(TISSUE, method="ours")))
    start = [f"{row(TISSUE, steps=s, method='blurred input')['snr_in_focus_db']:.1f}" for s in steps]
    lines = [("blurred plane (SNR, dB)", *start, "", "", "", "")]
    for method, name in TISSUE_METHODS.items():
        planes = [row(TISSUE, steps=step, method=method)["gain_in_focus_db"] for step in steps]
        means = [
            row(TISSUE_MEANS, comparison=kind, method=method) for kind in ("in_focus", "as_is")
        ]
        gains = [f"{mean['gain_db']:+.2f}" for mean in means]
        worse = [f"{mean['worse_planes']:.0f} of {mean['planes']:.0f}" for mean in means]
        lines.append((name, *(f"{gain:+.2f}" for gain in planes), *gains, *worse))
    header = ("method", *(f"{step:+.0f}" for step in steps), "mean", "mean as it is")
    header += ("planes made worse", "planes made worse, as it is")
    return Table(header, tuple(lines), (TISSUE, TISSUE_MEANS))


def held_out_photons() -> Table:
    """Log likelihood of held-out photons, above that of the smoothed other half."""
    lines: list[Row] = [{"name": "first half, smoothed", "mean": Number(0), "planes": "", "worse": ""}]
    for method, name in (TISSUE_METHODS | {"first half as it is": "first half as it is"}).items():
        planes = [e["advantage"] * 1000 for e in rows(HELD_OUT, method=method)]
        worse = _share([value < 0 for value in planes])
        line = {"name": name, "mean": Number(fmean(planes)), "planes": span(planes, "+.1f")}
        lines.append(line | {"worse": worse})
    columns = {
        "method": "{name}",
        "log likelihood above that of the smoothed half, 0.001 nat per pixel": "{mean:+.1f}",
        "worst to best plane": "{planes}",
        "planes behind it": "{worse}",
    }
    lines.sort(key=lambda line: -line["mean"])
    derived = (tuple(columns)[1], "planes behind it")
    return table(lines, columns, (HELD_OUT,), derived=derived)


def psf_programs() -> Table:
    """PSFs per second and error of every program."""
    lines = []
    for line in rows(PSFS):
        ours = line["program"].startswith("ours")
        faster = "" if ours else f"{line['our_speed_over_it']:sig3}"
        if line["program"].startswith("prysm"):
            faster += f" (any pupil {line['our_speed_any_pupil_over_it']:sig3})"
        lines.append(line | {"faster": faster})
    columns = {
        "program": "{program}",
        "PSF/s": "{psf_per_second:sig3}",
        "error": "{error_of_own_peak:.0e}",
        "we are faster by": "{faster}",
    }
    return table(lines, columns, (PSFS,))


def psf_speed() -> Table:
    """PSFs per second of our three ways, beside the next fastest program."""

    def one(program: str, column: str = "psf_per_second") -> Number:
        return row(PSFS, program=program)[column]

    bessel = one("psf-generator, Bessel 129", "our_speed_over_it")
    sub_pixels = one("psfmodels, 3 x 3 sub-pixels", "our_speed_over_it")
    pupil = one("prysm, matrix DFT 128, float32", "our_speed_any_pupil_over_it")
    return written(
        f"""
        PSFs | per second | beside the next fastest program
        point samples, axisymmetric pupil | {one("ours, points"):sig3} | {bessel:sig2} times psf-generator (Bessel integral)
        integrated over pixels | {one("ours, pixels"):sig3} | {sub_pixels:sig2} times psfmodels with 3 x 3 sub-pixels
        any other pupil | {one("ours, any pupil, points"):sig3} | {pupil:sig2} times prysm (matrix Fourier transform)
        """,
        (PSFS,),
    )


def _made(what: str, column: str = "patches_per_second") -> Number:
    return row(GENERATION, what=what)[column]


def _trained(column: str, patches: str, network: str = "spectral_resnet") -> Number:
    return row(TRAINING, network=network, patches=patches)[column]


def training_speed() -> Table:
    """Patches per second of simulation and training."""
    blur = "ours: synthesis and blur"
    loop = _made(blur, "times_plain_loop")
    return written(
        f"""
        what | value | in comparison
        synthesis and blur | {_made(blur):sig3} patches/s | {loop:sig2} times a loop of one PSF by FFT and one `fftconvolve` per patch
        `fftconvolve` alone | {_made("fftconvolve alone"):sig3} patches/s | {_made("fftconvolve alone", "times_plain_loop"):sig2} times the loop
        all of `generate_training_set.py --images mixed`, without the start of its processes | {_made("ours: the same without the start"):sig3} patches/s |
        fresh patches, `--images mixed`, two per crop | {_made("ours: fresh patches"):sig3} patches/s |
        fresh patches, one per crop | {_made("ours: fresh patches, one per crop"):sig3} patches/s |
        fresh patches, focus changes across half of them (now across a quarter) | {_made("ours: fresh patches, focus changes"):sig3} patches/s |
        training, `spectral_resnet`, stored patches | {_trained("patches_per_second", "stored"):sig3} patches/s | {_trained("times_resnet18", "stored"):.1f} times `resnet18`
        training, `spectral_resnet`, fresh patches | {_trained("patches_per_second", "fresh"):sig3} patches/s | {_trained("times_stored", "fresh"):.0%} of the rate on stored patches
        share of the training time spent waiting for stored, simulating fresh patches | {_trained("waiting_share", "stored"):.1%}, {_trained("waiting_share", "fresh"):.0%} |
        memory of the training | {_trained("peak_memory_gb", "fresh"):.1f} GB |
        """,
        (GENERATION, TRAINING),
    )


def mapping_speed() -> Table:
    """Seconds of maps, beside one window after the other."""
    lines = []
    for line in rows(MAPPING):
        times = line["times_single_windows"]
        memory = line["peak_memory_gb"]
        beside = f"{times:.1f} times as fast as window by window" if times == times else ""
        lines.append(line | {"beside": beside if beside else f"{memory:.1f} GB"})
    columns = {"map": "{what}", "seconds": "{seconds:sig2}"}
    columns |= {"patches/s": "{patches_per_second:sig3}", "in comparison": "{beside}"}
    return table(lines, columns, (MAPPING,))


def restoration_speed() -> Table:
    """Time of restorations relative to scikit-image."""
    programs = (
        ("one PSF", "ours, plain, 20 iterations", "one PSF"),
        ("8 x 8 PSFs", "ours, plain, 20 iterations", "map of 8 x 8 PSFs"),
        ("8 x 8 PSFs", "ours, momentum + tv, 20 iterations")
        + ("map of 8 x 8 PSFs, with total variation",),
        ("8 x 8 PSFs", "scikit-image, one run per PSF, blended")
        + ("scikit-image, one run for each of the 8 x 8 PSFs, blended",),
    )
    lines = [row(SPEED, task=task, program=name) | {"name": text} for task, name, text in programs]
    columns = {"restoration": "{name}", "time": "{time_over_scikit_image:sig2}"}
    return table(lines, columns | {"seconds": "{seconds:.2f}"}, (SPEED,))


def restoration_quality() -> Table:
    """PSNR and time of the task with 8 x 8 PSFs."""
    names = {
        "ours, automatic": "ours, automatic number of iterations and smoothing",
        "deepinv MLEM, eigen-PSFs, rank 4, valid domain": "deepinv on the same eigen-PSFs",
    }
    lines = rows(SPEED, task="8 x 8 PSFs", program=tuple(names))
    columns = {
        "method": "{name}",
        "PSNR": "{psnr_db:.1f} dB",
        "PSNR of the centre": "{psnr_centre_db:.1f} dB",
        "seconds": "{seconds:.1f}",
    }
    return table([e | {"name": names[e["program"]]} for e in lines], columns, (SPEED,))


def large_restoration() -> Table:
    """Seconds and memory from a file to its restoration."""
    names = {"auto": "automatic", 20: "`--iterations 20`"}
    lines = [line | {"name": names[line["iterations"]]} for line in rows(LARGE)]
    columns = {"iterations": "{name}", "seconds": "{seconds:.0f}", "memory": "{peak_memory_gb:.1f} GB"}
    return table(lines, columns, (LARGE,))


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
        {TURNED} | {largest_loss("rotation"):.4f} | | `benchmark_models.py --noise`, [arguments](docs/results.md#noise-rotation-and-illumination)
        depth of a plane tilted by 3°, with the lens, 1000 photons, rms | {tilted["profile_rms_um"]:.2f} µm | 2 µm | `python figure_depth.py`
        SNR gain of the restoration, 1000 photons | {ours["snr_gain_db"]:.2f} dB | | `python figure_deconvolution.py --images {ours["images"]:.0f}`
        {LEAD} | {fmean(lead(1000)):.2f} dB | up to 2.1 dB | the same
        PSFs per second, one thread, 127 x 127 px | {row(PSFS, program="ours, points")["psf_per_second"]:sig3} | | `python benchmarks/psf_synthesis.py`
        map of 2048 x 2048 px, stride 32, two cores: `focus`, `zernike1d` | {maps[0]:.1f} s, {maps[1]:.1f} s | | `python benchmarks/mapping.py --checkpoint focus`; without it `zernike1d`
        """,
        (TILTED, STACKS, NOISE, DEPTH, CASES, SUMMARY, PSFS, MAPPING, FOCUS_MAPS),
        derived=(TURNED, LEAD),
    )
