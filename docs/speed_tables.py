"""Tables of speed: PSFs, simulation, training, maps and restorations."""

from csv_tables import RECORDED, Number, Table, row, rows, table, written

PSFS, GENERATION = "benchmark_psf_synthesis.csv", "benchmark_generation.csv"
TRAINING, MAPPING = "benchmark_training.csv", "benchmark_mapping.csv"
SPEED, LARGE = "benchmark_deconvolution.csv", "benchmark_deconvolution_large.csv"
EXPORT = "benchmark_export.csv"
LARGE_IMAGE = "benchmark_large_image.csv"
FOCUS_MAPS = f"{RECORDED}/focus_maps.csv"


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
        ("8 x 8 PSFs", "ours, momentum + tv, 20 iterations", "the same, with total variation"),
        ("8 x 8 PSFs", "scikit-image, one run per PSF, blended", "scikit-image, 64 runs, blended"),
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
    columns = {
        "iterations": "{name}",
        "seconds": "{seconds:.0f}",
        "memory": "{peak_memory_gb:.1f} GB",
    }
    return table(lines, columns, (LARGE,))


def export_speed() -> Table:
    """Patches per second of exported networks, beside PyTorch."""
    columns = {
        "network": "`{network}`",
        "PyTorch": "{pytorch_patches_per_second:sig3}",
        "ONNX Runtime": "{onnxruntime_patches_per_second:sig3}",
        "times as fast": "{times_pytorch:.2f}",
        "file": "{megabytes:.1f} MB",
        "difference": "{difference_of_range:.0e}",
        "of content": "{difference_of_probability:.0e}",
    }
    return table(rows(EXPORT), columns, (EXPORT,))


def large_image() -> Table:
    """Seconds and memory of the map of a very large image, by number of Dask workers."""
    names = {0: "this process", 1: "one Dask worker", 2: "two Dask workers"}
    lines = []
    for line in rows(LARGE_IMAGE):
        worker = line["largest_worker_gb"]
        lines.append(
            line
            | {"name": names[line["dask_workers"]]}
            | {"worker": f"{worker:.1f} GB" if worker == worker else ""}
            | {"same": "yes" if line["same_table"] else "no"}
        )
    columns = {
        "image": "{edge_px:.0f} x {edge_px:.0f} px, stride {stride_px:.0f}",
        "predicted by": "{name}",
        "seconds": "{seconds:.0f}",
        "memory of the command": "{memory_gb:.1f} GB",
        "of the largest worker": "{worker}",
        "same map.csv": "{same}",
    }
    return table(lines, columns, (LARGE_IMAGE,))
