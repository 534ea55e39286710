"""ONNX files of networks."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from common.extras import needed
from export.context import ImageNetwork
from export.network import OUTPUTS, PARTS, PatchNetwork
from models.estimator import Estimator

# The oldest opset that the exporter of PyTorch writes by itself. ONNX Runtime reads it since 1.14
# (2023), on Java and in the browser too.
OPSET = 18
# Version of the file format that belongs to this opset. The exporter would write a later one.
IR_VERSION = 8
REQUIREMENTS, WHAT = "requirements-export.txt", "export_model.py"
PATCH_INPUTS = ("patches", "cutoff")
IMAGE_INPUTS = ("features", "facts", "places", "keys")
# Patches and places of the example that the exporter follows. It fixes sizes of 0 and 1.
EXAMPLE_PATCHES, EXAMPLE_PLACES = 3, (3, 5)


def onnx_packages() -> tuple[ModuleType, ModuleType]:
    """The packages onnx and onnxruntime; the exporter's own package is asked for too.

    Raises
    ------
    InputError
        If one of them is missing.
    """
    needed("onnxscript", WHAT, REQUIREMENTS)
    return tuple(needed(name, WHAT, REQUIREMENTS) for name in ("onnx", "onnxruntime"))


def write_patch_network(
    path: Path, estimator: Estimator, facts: Mapping[str, Any], parts: bool = False
) -> None:
    """Write the network of single patches, with facts about it; `parts` as in `PatchNetwork`."""
    size, network = estimator.patch_size, PatchNetwork(estimator, parts)
    batch = torch.export.Dim("batch")
    example = (torch.rand(EXAMPLE_PATCHES, size, size), torch.full((EXAMPLE_PATCHES,), 0.5))
    outputs = OUTPUTS + (PARTS if parts else ())
    _write(path, network, example, ({0: batch}, {0: batch}), (PATCH_INPUTS, outputs), facts)


def write_image_network(path: Path, estimator: Estimator, facts: Mapping[str, Any]) -> None:
    """Write the network that sees the patches of an image together."""
    planes, places, keys = (torch.export.Dim(name) for name in ("planes", "places", "keys"))
    first, second = EXAMPLE_PLACES
    width = estimator.network.head[2].in_features
    example = (
        torch.rand(first, second, width),
        torch.rand(first, second, 2),
        torch.rand(second, 2),
        torch.arange(first * second),
    )
    dynamic = ({0: planes, 1: places}, {0: planes, 1: places}, {0: places}, {0: keys})
    _write(path, ImageNetwork(estimator), example, dynamic, (IMAGE_INPUTS, OUTPUTS), facts)


def _write(
    path: Path,
    network: nn.Module,
    example: tuple[torch.Tensor, ...],
    dynamic: tuple[dict[int, Any], ...],
    names: tuple[Sequence[str], Sequence[str]],
    facts: Mapping[str, Any],
) -> None:
    """Write a network; `dynamic` names the axes of each input whose sizes are free."""
    onnx, _ = onnx_packages()
    with warnings.catch_warnings():  # about names of axes that it takes over, and its own plans
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            input_names=names[0],
            output_names=names[1],
        )
    model = program.model_proto
    model.ir_version = IR_VERSION
    for graph_node in model.graph.node:  # the exporter notes lines and paths of our code there
        del graph_node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.helper.set_model_props(model, {key: _as_text(value) for key, value in facts.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
