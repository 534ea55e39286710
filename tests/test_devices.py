"""Device mistakes are found without a GPU.

Tensors on the CPU pose as tensors on a GPU: they report the device `cuda:7` or `mps:7`, and refuse
what such a tensor refuses, which is tensors and generators of the CPU, NumPy, and on MPS double
precision. Each test makes the same call on the CPU and on the posing device, and compares values.
`device_cases` lists the calls, which `test_gpu.py` makes on a real GPU.
"""

import json
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import (
    CASES,
    CPU,
    LABELS,
    OPTICS,
    SAMPLED,
    SIZE,
    patches,
    restored_with_map,
    simulated,
)
from torch.overrides import TorchFunctionMode

from models.checkpoint import load_estimator
from models.data import PatchSet
from models.run_state import load_state, save_state
from models.trainer import Settings, Trainer
from psf.blur import blur_valid, blur_varying
from psf.synthesis import synthesize_with_loss
from restoration import with_map
from simulation import augmentation
from simulation.stream import PatchStream

ROOT = Path(__file__).parents[1]
# The index keeps cached tables of these tests apart from those of a real GPU.
DEVICES = [torch.device("cuda", 7), torch.device("mps", 7)]
NOT_ON_MPS = (torch.float64, torch.complex128, torch.uint16)  # the last with torch before 2.9
# Largest differences, as shares of the largest value. The operations are the same, but sums depend
# on the place of numbers in memory. On MPS, PSFs and their compression are computed in single
# precision, which the restoration amplifies.
TOLERANCE = {"cuda": 1e-6, "mps": 1e-4}
# The name of the device is all that autocast looks at; mixed precision stays off in any case.
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available. *Disabling")


class Posing(torch.Tensor):
    """A CPU tensor that poses as one on a GPU; what is computed from it poses too."""

    where: torch.device  # set by the fixture

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copied = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return copied


class PosingGenerator(torch.Generator):
    """A generator that poses in the same way; it draws what a CPU generator of its seed draws."""

    @property
    def device(self) -> torch.device:
        return Posing.where


class Mixed(Exception):
    """A call that the device would refuse."""


class Generator(torch.Generator):
    """Stands in for `torch.Generator`, which has no GPU here."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        return PosingGenerator() if is_posing(device) else REAL_GENERATOR()


REAL_GENERATOR = torch.Generator
TO_NUMPY = (torch.Tensor.numpy, torch.Tensor.__array__)


class PosingMode(TorchFunctionMode):
    """Gives devices their meaning for posing tensors, and refuses what a GPU would refuse."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return device_of(args[0])
        if func == torch.Tensor.is_cuda.__get__:
            return device_of(args[0]).type == "cuda"
        if func == torch.Tensor.to:
            return move(*args, **kwargs)
        if func == torch.Tensor.cpu:
            return pose(args[0], CPU)
        if func == torch._has_compatible_shallow_copy_type:
            return device_of(args[0]) == device_of(args[1])  # nn.Module.to asks
        if func in TO_NUMPY and isinstance(args[0], Posing):
            raise Mixed("a tensor on the GPU has no NumPy array; move it with .cpu() first")
        device = kwargs.pop("device", None)
        refuse_mixtures(func, device, args, kwargs)
        found = func(*args, **kwargs)
        if func == torch.Tensor.grad.__get__ and found is not None:
            return found.as_subclass(type(args[0]))  # torch itself returns a plain tensor
        return refuse_types(found) if device is None else pose(found, device)


def refuse_mixtures(func: Any, device: Any, args: Any, kwargs: Any) -> None:
    """Raise where a GPU would: tensors on two devices, or a generator of the other one.

    Single numbers may stay on the CPU, and so may indices; copies cross devices.
    """
    given = list(flat((args, kwargs)))
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    posing = any(isinstance(one, Posing) for one in tensors)
    name = getattr(func, "__qualname__", repr(func))
    copies = func == torch.Tensor.copy_
    looks_up = func == torch.Tensor.__getitem__ and isinstance(args[0], Posing)
    if posing and not copies and not looks_up:
        plain = [tuple(t.shape) for t in tensors if not isinstance(t, Posing) and t.ndim]
        if plain:
            raise Mixed(f"{name} gets tensors on the GPU, and on the CPU tensors of shape {plain}")
    drawn = posing if device is None else is_posing(device)
    for one in given:
        if isinstance(one, REAL_GENERATOR) and isinstance(one, PosingGenerator) != drawn:
            raise Mixed(f"{name} draws on one device from a generator of the other")


def refuse_types(found: Any) -> Any:
    """What a call returned, unless the device has no numbers of this type."""
    for one in flat(found):
        if isinstance(one, Posing) and Posing.where.type == "mps" and one.dtype in NOT_ON_MPS:
            raise Mixed(f"a tensor of {one.dtype} on MPS, which has none")
    return found


def flat(values: Any) -> Iterator[Any]:
    """Every value in nested lists, tuples and dicts."""
    if isinstance(values, dict):
        values = tuple(values.values())
    if not isinstance(values, list | tuple):
        yield values
        return
    for one in values:
        yield from flat(one)


def is_posing(device: torch.device | str) -> bool:
    return torch.device(device).type == Posing.where.type


def device_of(tensor: torch.Tensor) -> torch.device:
    return Posing.where if isinstance(tensor, Posing) else CPU


def move(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`tensor.to(...)`, where a device, a type or another tensor may come first."""
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    for one in args:
        if isinstance(one, torch.Tensor):
            device, dtype = device_of(one), one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, str | torch.device):
            device = one  # what else may come says when to copy
    moved = tensor.to(dtype or tensor.dtype, **kwargs)
    return refuse_types(moved) if device is None else pose(moved, device)


def pose(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device: itself, or a copy if it was on the other one."""
    if isinstance(tensor, Posing) == is_posing(device):
        return tensor
    return refuse_types(tensor.clone().as_subclass(Posing if is_posing(device) else torch.Tensor))


@pytest.fixture(params=DEVICES, ids=["cuda", "mps"])
def posing(monkeypatch, request):
    """The posing device, which exists while the test runs."""
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(Posing, "where", request.param, raising=False)
    with PosingMode():
        yield request.param


class Waits(TorchFunctionMode):
    """Counts calls that make the CPU wait for the posing GPU, by name.

    They read numbers of the GPU, select by a mask, whose result has an unknown size, or copy
    between the devices. A copy to CUDA with non_blocking=True does not wait.
    """

    READ = ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "cpu")
    SIZE = ("nonzero", "argwhere", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = getattr(func, "__name__", repr(func))
        if self._waits(name, found, args, kwargs):
            self.count[f"{name} in {calling_line()}"] += 1
        return found

    def _waits(self, name: str, found: Any, args: tuple, kwargs: dict) -> bool:
        first = args[0] if args else None
        if name in ("tensor", "as_tensor", "new_tensor"):
            return isinstance(found, Posing) and not isinstance(args[-1], Posing)
        if name in ("to", "copy_", "cuda"):
            source = args[1] if name == "copy_" else first
            crosses = isinstance(found, Posing) != isinstance(source, Posing)
            free = kwargs.get("non_blocking") and isinstance(found, Posing)
            return crosses and not (free and Posing.where.type == "cuda")
        if not isinstance(first, Posing):
            return False
        if name in ("__getitem__", "__setitem__"):
            one_number = name == "__setitem__" and not isinstance(args[2], torch.Tensor)
            return any(selects(index, one_number) for index in flat(args[1]))
        return name in (*self.READ, *self.SIZE)


def selects(index: Any, one_number: bool) -> bool:
    """Whether an index is a mask, which has to be counted, or lies on the CPU."""
    if isinstance(index, np.ndarray):
        return True
    if not isinstance(index, torch.Tensor):
        return False
    is_mask = index.dtype == torch.bool and not one_number
    return is_mask or (index.ndim > 0 and not isinstance(index, Posing))


def calling_line() -> str:
    """File and line of the project that made a call of PyTorch."""
    places = traceback.extract_stack()
    project = [line for line in places if Path(line.filename).is_relative_to(ROOT)]
    outside = [line for line in project if Path(line.filename).parent.name != "tests"]
    line = (outside or project)[-1]
    return f"{Path(line.filename).relative_to(ROOT)}:{line.lineno}"


def waits_of(call: Callable[[], Any]) -> dict[str, int]:
    """Waits of a call, after one that has filled the caches."""
    call()
    with Waits() as waits:
        call()
    return dict(waits.count)


# --- the mechanism itself


def on_gpu(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, device=Posing.where)


def test_results_pose_and_come_back(posing):
    x = on_gpu([1.0, 2.0])
    assert x.device == (x * 2).device == x.new_zeros(2).device == torch.zeros_like(x).device
    assert x.device == posing
    assert torch.ones(2).to(x).device == torch.ones(2).to(posing, torch.int64).device == posing
    assert x.to(torch.float16).device == x.sort().values.device == torch.fft.rfft(x).device
    assert x.cpu().device == x.to("cpu").device == CPU
    assert x.cpu().numpy().tolist() == x.tolist() == [1, 2]
    drawn = torch.rand(2, generator=torch.Generator(posing).manual_seed(1), device=posing)
    assert torch.equal(drawn.cpu(), torch.rand(2, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(2),
        lambda x: torch.stack([torch.ones(2), x]),
        lambda x: torch.where(x > 0, torch.ones(2), x),
        lambda x: torch.nn.functional.mse_loss(x, torch.ones(2)),
        lambda x: torch.ones(2)[x.long() - 1],
        lambda x: x.index_add_(0, torch.tensor([0]), x[:1]),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: torch.poisson(x, torch.Generator()),
        lambda x: torch.rand(2, generator=torch.Generator(), device=Posing.where),
        lambda x: torch.rand(2, generator=torch.Generator(Posing.where)),
    ],
)
def test_mistakes_are_refused(posing, mistake):
    with pytest.raises(Mixed):
        mistake(on_gpu([1.0, 2.0]))


def test_mps_has_no_double_precision(posing):
    calls = (lambda x: x.double(), lambda x: torch.zeros(2, dtype=torch.float64).to(x.device))
    for call in calls:
        if posing.type == "mps":
            with pytest.raises(Mixed):
                call(on_gpu([1.0]))
        else:
            assert call(on_gpu([1.0])).dtype == torch.float64


def test_what_a_gpu_allows_is_allowed(posing):
    x = on_gpu([1.0, 2.0])
    assert (x * torch.tensor(2.0)).tolist() == [2, 4]
    assert x[torch.tensor([1, 1])].tolist() == [2, 2]
    assert x.copy_(torch.ones(2)).tolist() == [1, 1]
    assert float(x.sum()) == 2


def test_gradients_pose(posing):
    x = on_gpu([1.0, 2.0]).requires_grad_()
    x.square().sum().backward()
    assert (x.grad.device, x.grad.tolist()) == (posing, [2, 4])


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda x: float(x.sum()), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[torch.tensor([1, 0])], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.ones(2).to(x.device), 1),
        (lambda x: x.new_tensor([1.0]), 1),
        (lambda x: torch.tensor([1.0], device=x.device), 1),
        (lambda x: torch.where(x > 1, x, 0.0).sum(), 0),
        (lambda x: x[x.long() - 1], 0),
        (lambda x: x.clone().masked_fill_(x > 1, 0.0), 0),
        (lambda x: x.new_zeros(3), 0),
        (lambda x: x.to(torch.float16), 0),
    ],
)
def test_waits_are_counted(posing, call, waits):
    x = on_gpu([1.0, 2.0])
    assert sum(waits_of(lambda: call(x)).values()) == waits


def test_a_copy_in_the_background_is_no_wait_on_cuda(posing):
    found = waits_of(lambda: torch.ones(2).to(posing, non_blocking=True))
    assert sum(found.values()) == (posing.type == "mps")


# --- the cases that a real GPU computes too


@pytest.mark.parametrize("name", CASES)
def test_case(posing, name):
    case = CASES[name]
    expected, found = case.compute(CPU), case.compute(posing)
    assert found.device == (posing if case.stays else CPU)
    assert_same(found, expected)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.isfinite(expected).all()
    difference = (found.cpu() - expected).abs().max()
    assert difference <= TOLERANCE[Posing.where.type] * expected.abs().max()


@pytest.mark.parametrize("refined", [False, True])
def test_restoration_in_tiles(posing, monkeypatch, refined):
    monkeypatch.setattr(with_map, "WHOLE_PX", 0)
    monkeypatch.setattr(with_map, "TILE", 48)
    found, expected = (restored_with_map(device, refined) for device in (posing, CPU))
    assert found.device == posing
    assert_same(found, expected)


@pytest.fixture(scope="module")
def patches_of_the_cpu(focus_data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "GRAIN_SHARE", 0.0)
        return simulated(CPU, focus_data)


def test_simulated_patches(posing, focus_data, patches_of_the_cpu, monkeypatch):
    # grain is drawn on the device, on a CPU crop by crop
    monkeypatch.setattr(augmentation, "GRAIN_SHARE", 0.0)
    found, expected = simulated(posing, focus_data), patches_of_the_cpu
    for name in ("labels", "has_content", "optics", "origins"):
        assert getattr(found, name).device == posing
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))
    # a CPU samples crops from boxes around them, other devices from whole tiles
    assert (found.blurred.cpu() - expected.blurred).abs().max() < SAMPLED


# --- work that must keep a GPU busy


@pytest.fixture
def cuda(monkeypatch):
    """The posing CUDA device; MPS has no copies in the background."""
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(Posing, "where", DEVICES[0], raising=False)
    with PosingMode():
        yield DEVICES[0]


@pytest.mark.parametrize("optics", [OPTICS, [OPTICS, replace(OPTICS, na=0.4)]], ids=["one", "two"])
@pytest.mark.parametrize("name", LABELS)
def test_psfs_of_labels_on_the_cpu_do_not_wait(cuda, name, optics):
    labels = torch.tensor(LABELS[name])
    found = waits_of(lambda: synthesize_with_loss(name, labels, optics, SIZE, device=cuda))
    assert not found


def test_blur_does_not_wait(cuda):
    images, psfs = torch.rand(9, 64, 64).to(cuda), torch.rand(9, 15, 15).to(cuda)
    assert not waits_of(lambda: blur_valid(images, psfs))
    weights = torch.rand(9, 64, 64).to(cuda)
    assert not waits_of(lambda: blur_varying(images[0], psfs, weights))


def test_batches_of_a_prediction_do_not_wait_for_each_other(cuda):
    estimator, given = load_estimator("zernike1d", cuda), patches().to(cuda)
    one = waits_of(lambda: estimator.predict(given, OPTICS, batch_size=6))
    # they are: finite patches, the cut-off on its way there, outputs and noise on their way back
    assert sum(one.values()) <= 4
    assert waits_of(lambda: estimator.predict(given, OPTICS, batch_size=2)) == one


def test_simulated_batches_do_not_wait(cuda, focus_data):
    config = json.loads((focus_data / "config.json").read_text("utf-8"))
    with closing(PatchStream(focus_data, config, cuda, seed=3)) as stream:
        steps = iter(range(2))
        assert not waits_of(lambda: stream.draw(next(steps), 64))


def test_a_training_step_does_not_wait(cuda, focus_data):
    trainer = Trainer(Settings(data=focus_data, device=str(cuda), bf16=False), 0, 1)
    batch = PatchSet(focus_data, "train").batch(np.arange(20), cuda)
    found = waits_of(lambda: trainer.train_step(batch, 1e-3))
    # clip_grad_norm_ asks the C++ side of a gradient for its device, and hears "cpu"
    assert sum(found.values()) == 1
    assert all(line.startswith("to in models/trainer.py") for line in found)


# --- training


def trained(data, device):
    """A trainer after two steps, and the losses."""
    settings = Settings(data=data, batch_size=40, device=str(device), bf16=False)
    trainer = Trainer(settings, 0, 1)
    batches = (np.arange(40), np.arange(40, 80))
    patch_set = PatchSet(data, "train")
    steps = [
        trainer.train_step(patch_set.batch(indices, trainer.device), 1e-3) for indices in batches
    ]
    return trainer, [step[0].item() for step in steps]


def weights(trainer):
    return {name: tensor.cpu() for name, tensor in trainer.network.state_dict().items()}


def test_training_validation_and_state(posing, focus_data, tmp_path):
    on_cpu, expected = trained(focus_data, CPU)
    there, losses = trained(focus_data, posing)
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, tensor in weights(there).items():
        assert torch.allclose(tensor, weights(on_cpu)[name], atol=1e-6), name
    first = there.validate()
    assert first == on_cpu.validate()
    assert there.validate() == first  # from the patches that a GPU keeps

    path = tmp_path / "state.safetensors"
    save_state(path, there.network, there.optimizer, {"step": 2})
    again = Trainer(there.config, 0, 1)
    load_state(path, again.network, again.optimizer)
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, weights(there)[name]), name
    state = again.optimizer.state_dict()["state"]
    assert {one["exp_avg"].device for one in state.values()} == {posing}
