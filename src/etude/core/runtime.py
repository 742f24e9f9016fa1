"""Where a run computes: device, precision and processes, on top of accelerate."""

# pyright: reportMissingTypeStubs=false

import contextlib
import ctypes
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim import Optimizer

from etude.core import randomness
from etude.core.config import LoopConfig
from etude.core.errors import UserError

M = TypeVar("M", bound=nn.Module)

_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Runtime:
    """The processes, device and precision of one run, and its keyed generators.

    Under ``torchrun`` (one machine or many) every process builds one; the gradients of modules given
    to `prepare` are then averaged over the processes.
    """

    def __init__(self, loop: LoopConfig, seed: int) -> None:
        device = resolve_device(loop.device)
        if loop.precision == "fp16" and device == "cpu":
            raise UserError("fp16 needs an accelerator: use --loop.precision fp32 or bf16 on the CPU")
        if device == "cpu":
            _keep_freed_memory()
            # Numbers too small for a float's exponent make a matrix product up to thirty times as slow.
            torch.set_flush_denormal(True)
        # Accelerate keeps the first precision it saw in a process: a second run in it may use another.
        AcceleratorState._reset_state()  # pyright: ignore[reportPrivateUsage]
        self.accelerator: Any = Accelerator(
            cpu=device == "cpu",
            mixed_precision=_PRECISION[loop.precision],
            # Buffers are averaged by `parts`; DDP would overwrite them with those of rank 0.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.seed = seed
        self.compile = loop.compile
        self._prepared: list[nn.Module] = []
        self._alone = False

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return 0 if self._alone else self.accelerator.process_index

    @property
    def world(self) -> int:
        """The number of processes."""
        return 1 if self._alone else self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def generator(self, stream: str, step: int, index: int = 0) -> torch.Generator:
        """A CPU generator keyed by (seed, stream, step, index): the same in every process."""
        return randomness.generator(self.seed, stream, step, index)

    def prepare(self, module: M, *, channels_last: bool = False) -> M:
        """Move a module to the device, compile it if the run asks for it, and share its gradients.

        Call the returned module in `train_step`; save and evaluate the original.
        """
        untyped = cast(Any, module)
        untyped.to(self.device)
        if channels_last:
            untyped.to(memory_format=torch.channels_last)
        if self.compile:
            untyped.compile()
        self._prepared.append(module)
        return self.accelerator.prepare_model(module)

    def prepare_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Wrap an optimiser so that it takes part in loss scaling under fp16."""
        return self.accelerator.prepare_optimizer(optimizer)

    def parts(self, total: int, *wrapped: nn.Module) -> Iterator[int]:
        """The parts of one step's batch that this process takes, gradients accumulated over them.

        Args:
            total: how many parts the whole batch has, over all processes.
            wrapped: the modules, as `prepare` returned them, whose gradients are shared after the
                last part.

        Yields:
            The part's index in the batch. ``backward(loss, total)`` within the body makes the summed
            gradient the mean over all parts, however they are spread over processes.

        Running statistics move by the mean over the parts of what each would have done, so that one
        process with all the parts and many with a few end in the same state.
        """
        if total < self.world:
            raise UserError(
                f"a batch of {total} part(s) cannot be shared by {self.world} processes: make it larger "
                "(--batch.parts where a study has it)"
            )
        mine = range(self.rank, total, self.world)
        average = _BufferAverage(self._prepared) if total > 1 else None
        for index in mine:
            with contextlib.ExitStack() as stack:
                if index != mine[-1]:
                    for module in wrapped:
                        stack.enter_context(self.accelerator.no_sync(module))
                yield index
            if average:
                average.take()
        if average:
            average.finish(self, total)

    def backward(self, loss: Tensor, total: int) -> None:
        """Back-propagate one of ``total`` parts' mean loss (a scalar)."""
        # DDP takes the mean over processes of each one's sum.
        self.accelerator.backward(loss * (self.world / total))

    def accumulate(
        self, compute: Callable[[int], Mapping[str, Tensor]], parts: int, *wrapped: nn.Module
    ) -> dict[str, Tensor]:
        """Back-propagate the mean of the losses of a batch's parts.

        Args:
            compute: for a part of the batch, scalars by name; ``loss`` among them is back-propagated.
            parts: how many parts the whole batch has, over all processes.
            wrapped: the modules, as `prepare` returned them, whose gradients are shared.

        Returns:
            The mean of each scalar over the parts, once the processes' mean is taken, as the loop does when it logs.
        """
        sums: dict[str, Tensor] = {}
        for part in self.parts(parts, *wrapped):
            found = compute(part)
            self.backward(found["loss"], parts)
            for name, value in found.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return {name: value * self.world / parts for name, value in sums.items()}

    def descend(
        self,
        optimizer: Optimizer,
        compute: Callable[[int], Mapping[str, Tensor]],
        parts: int,
        *wrapped: nn.Module,
        clip: float | None = None,
    ) -> dict[str, Tensor]:
        """One step of an optimiser down the mean loss of a batch's parts, see `accumulate`.

        Args:
            optimizer: as `prepare_optimizer` returned it.
            compute: see `accumulate`.
            parts: see `accumulate`.
            wrapped: see `accumulate`.
            clip: the largest norm of the gradient over all of the optimiser's parameters, 0 for any; the returned means
                then have it as ``gradient``. None: it is not measured.
        """
        means = self.accumulate(compute, parts, *wrapped)
        if clip is not None:
            # In the modules' order: however an optimiser groups them, the norm is the same to the last bit.
            own = {p for group in optimizer.param_groups for p in group["params"]}
            parameters = [p for module in wrapped for p in module.parameters() if p in own]
            means["gradient"] = self.accelerator.clip_grad_norm_(parameters, clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        return means

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.world == 1:
            return values
        return self.accelerator.reduce(values, reduction="sum")

    def share(self, count: int) -> slice:
        """This process's slice of ``count`` items, for work whose results `gather` puts together."""
        size = -(-count // self.world)
        return slice(min(self.rank * size, count), min((self.rank + 1) * size, count))

    def gather(self, local: Tensor, count: int) -> Tensor:
        """The rows that the processes made of their `share` of ``count`` items, in order.

        Args:
            local: this process's rows, first dimension as long as its share.
            count: the rows of all processes together.
        """
        if self.world == 1:
            return local
        size = -(-count // self.world)
        padded = local.new_zeros((size, *local.shape[1:]))
        padded[: len(local)] = local
        return self.accelerator.gather(padded)[:count]

    @contextlib.contextmanager
    def alone(self) -> Generator[None, None, None]:
        """Within it this process shares no work and waits for no other: for what the main one alone does."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    def wait(self) -> None:
        """Wait for the other processes."""
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """What the runtime itself must keep for an exact resume: the loss scale under fp16."""
        scaler = self.accelerator.scaler
        return {"scaler": scaler.state_dict()} if scaler is not None else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])


class _BufferAverage:
    """Buffers of some modules, moved by the mean of what each part did to them; counters move as by one part."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        every = [b for module in modules for b in module.buffers()]
        self.buffers = [b for b in every if b.is_floating_point()]
        self.counters = [(b, b.clone()) for b in every if not b.is_floating_point()]
        self.counted: list[Tensor] = []
        self.before = [b.clone() for b in self.buffers]
        self.sums = [torch.zeros_like(b) for b in self.buffers]

    def take(self) -> None:
        """Note what the part made of the buffers, and put them back for the next part."""
        for buffer, before, total in zip(self.buffers, self.before, self.sums, strict=True):
            total += buffer
            buffer.copy_(before)
        self.counted = [counter.clone() for counter, _ in self.counters]
        for counter, before in self.counters:
            counter.copy_(before)

    def finish(self, runtime: Runtime, total: int) -> None:
        if self.buffers:
            flat = runtime.sum(torch.cat([s.flatten() for s in self.sums])) / total
            for buffer, mean in zip(self.buffers, torch.split(flat, [b.numel() for b in self.buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))
        for (counter, _), counted in zip(self.counters, self.counted, strict=True):
            counter.copy_(counted)


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step instead of giving them back to the system.

    A training step on the CPU frees and asks again for the same hundreds of megabytes; fresh pages cost a fault
    each. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def resolve_device(name: str) -> str:
    """``auto`` as the device there is; `UserError` for a device that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((device for device in ("cuda", "mps") if there[device]), "cpu")
    if not there[name]:
        raise UserError(f"no {name} device here: use --loop.device auto or cpu")
    return name
