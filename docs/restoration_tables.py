"""Tables of restorations: gains on simulated images, on processed ones and on real stacks."""

from math import sqrt
from statistics import fmean, median, stdev

from csv_tables import Number, Row, Table, row, rows, span, table
from scipy.special import stdtrit

CASES, SUMMARY = "deconvolution.csv", "deconvolution_summary.csv"
PROCESSED = "processed_images_summary.csv"
TISSUE, TISSUE_MEANS = "real_restoration.csv", "real_restoration_summary.csv"
HELD_OUT = "held_out_photons.csv"
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
    header = ("", "1000 photons", "100 photons", "our aim (1000 / 100)")
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
    start = [
        f"{row(TISSUE, steps=s, method='blurred input')['snr_in_focus_db']:.1f}" for s in steps
    ]
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
    lines: list[Row] = [
        {"name": "first half, smoothed", "mean": Number(0), "planes": "", "worse": ""}
    ]
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
