"""How far an ONNX file is from PyTorch."""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.examples import cases, simulated_case
from export.network import OUTPUTS, PARTS
from export.onnx_file import onnx_packages
from models.context import spread_keys
from models.estimator import Estimator, OpticsWarning, Prediction
from psf.errors import InputError

# Largest differences that are accepted: of values and error bars as a share of the label's range,
# and of probabilities as they are, since they decide at 0.5 only. The rms error of a network with
# R^2 = 0.999 on labels that are uniform over their range is a hundred times as large.
LIMITS = dict.fromkeys(OUTPUTS, 1e-4) | {"content_probability": 1e-3}
# Planes and places of the images on which the second network is compared: one patch, one image, a
# stack, and more patches than it takes as keys.
IMAGES = ((1, 1), (1, 28), (4, 7), (1, 300))

Differences = dict[str, dict[str, float]]  # by case and output


def open_session(path: Path, threads: int = 1) -> Any:
    """ONNX Runtime session of a file on the CPU."""
    _, runtime = onnx_packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, *inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """Outputs of a session by name, from its inputs in order."""
    names = [one.name for one in session.get_inputs()]
    given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    outputs = [one.name for one in session.get_outputs()]
    return dict(zip(outputs, session.run(None, given), strict=True))


def compare_patches(path: Path, estimator: Estimator) -> Differences:
    """Differences from `Estimator.predict` in each of `cases`."""
    session, found = open_session(path), {}
    for case in cases(estimator):
        with warnings.catch_warnings():  # some cut-offs come from optics that no objective has
            warnings.simplefilter("ignore", OpticsWarning)
            expected = estimator.predict(case.reference, case.microscopes)
        outputs = run_session(session, case.patches, case.cutoffs)
        found[case.name] = output_differences(outputs, expected, estimator.config["label_ranges"])
    return found


def compare_images(model: Path, context: Path, estimator: Estimator) -> Differences:
    """Differences from `Estimator.predict_together` for each of IMAGES.

    The patches, some of them constant, pass both ONNX files: `model` and then `context`.
    """
    session, encoder, found = open_session(context), open_session(model), {}
    case = next(case for case in cases(estimator) if case.name == "constant")
    patches = torch.cat([simulated_case(estimator).patches, case.patches])
    cutoff = torch.full((len(patches),), float(case.cutoffs[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OpticsWarning)
        seen = estimator.features(patches, case.microscopes[0])
    encoded = run_session(encoder, patches, cutoff)
    parts = [torch.from_numpy(encoded[name]) for name in PARTS]
    for planes, count in IMAGES:
        chosen = torch.arange(planes * count).view(planes, count) % len(patches)
        side = int(np.ceil(np.sqrt(count)))
        places = torch.tensor(list(itertools.islice(np.ndindex(side, side), count))) / 4
        keys = spread_keys(planes * count, torch.device("cpu"))
        expected = estimator.predict_together(*(part[chosen] for part in seen), places)
        outputs = run_session(session, *(part[chosen] for part in parts), places, keys)
        found[f"{planes} x {count} patches"] = output_differences(
            outputs, expected, estimator.config["label_ranges"]
        )
    return found


def output_differences(
    found: Mapping[str, np.ndarray], expected: Prediction, ranges: Iterable[Sequence[float]]
) -> dict[str, float]:
    """Largest difference of each of OUTPUTS, in the units of LIMITS; NaN if a value is NaN."""
    width = np.array([high - low for low, high in ranges])
    scales = dict.fromkeys(OUTPUTS, width) | {"content_probability": np.ones(1)}
    return {
        name: float((np.abs(found[name] - getattr(expected, name).numpy()) / scales[name]).max())
        for name in OUTPUTS
    }


def largest_of_range(differences: Differences) -> float:
    """Largest difference of a value or an error bar, as a share of the label's range."""
    return max(
        value
        for case in differences.values()
        for name, value in case.items()
        if name != "content_probability"
    )


def refuse_different(differences: Differences) -> None:
    """Refuse an exported network that is not the network itself.

    Raises
    ------
    InputError
        If a difference is NaN or above its entry of LIMITS.
    """
    for case, outputs in differences.items():
        for name, value in outputs.items():
            if not value <= LIMITS[name]:
                raise InputError(
                    f"{name} of the ONNX network differ from PyTorch by {value:.1e} ({case}), more "
                    f"than {LIMITS[name]:g}; nothing was written. Install the versions of "
                    "requirements-export.txt."
                )
