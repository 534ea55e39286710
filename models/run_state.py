"""State of a training on disk: all that a stopped run needs to go on as if it had not stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from common.files import whole_file
from psf.errors import InputError


def save_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> None:
    """Write all that a resumed run needs to one safetensors file; `facts` must suit JSON."""
    tensors = {f"network/{k}": v.contiguous() for k, v in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = value.contiguous()
    with whole_file(path) as partial:
        partial.write_bytes(save(tensors, {"facts": json.dumps(facts)}))


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Facts that `save_state` wrote; network and optimiser get back their saved state.

    Raises
    ------
    InputError
        If the file is truncated.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); train again with another --out.") from error
    network.load_state_dict(
        {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}
    )
    state = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)
    return facts
