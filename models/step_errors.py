"""What can go wrong in a training step: no finite loss, too little memory, no compiler."""

import math
from collections.abc import Callable, Sequence

import torch

from psf.errors import InputError


def check_finite(steps: Sequence[torch.Tensor], step: int) -> list[float]:
    """Losses of some steps, (loss, length of the gradient) each, the last before step `step`.

    Raises
    ------
    InputError
        If one of the numbers is not finite, which spoils all weights of later steps.
    """
    if not steps:
        return []
    rows = torch.stack(list(steps)).tolist()
    for index, row in enumerate(rows, start=step - len(rows)):
        for name, value in zip(("loss", "gradient"), row, strict=True):
            if not math.isfinite(value):
                raise InputError(
                    f"the {name} became {value} at step {index}; the best weights so far are "
                    "kept. Give a smaller --learning-rate."
                )
    return [loss for loss, _ in rows]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device reports that its memory is full; MPS and CPUs have no type for it."""
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(one in text for one in texts)


def is_compile_error(error: RuntimeError) -> bool:
    """Whether torch.compile raised the error, e.g. because there is no C++ compiler."""
    modules = ("torch._dynamo", "torch._inductor")  # not imported here: that takes a second
    return any(kind.__module__.startswith(modules) for kind in type(error).__mro__)


def fitting_size(size: int, attempt: Callable[[int], None] | None) -> int:
    """Largest power of two below `size` with which `attempt` has enough memory, or 0.

    Without `attempt`, the largest power of two below `size`.
    """
    smaller = 1 << (size - 1).bit_length() - 1 if size > 1 else 0
    while smaller and attempt is not None and not _has_memory(attempt, smaller):
        smaller //= 2
    return smaller


def _has_memory(attempt: Callable[[int], None], size: int) -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # blocks of the size that failed are of no use now
    try:
        attempt(size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
