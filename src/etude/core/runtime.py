"""The place where a run computes: device, precision and processes, on top of accelerate."""

# pyright: reportMissingTypeStubs=false

import contextlib
import ctypes
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
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
        """The numbers of the parts of one step's batch that this process takes.

        The gradients of ``wrapped`` modules, as `prepare` returned them, are shared after the last part. Running
        statistics move by the mean over the parts of what each would have done, so that one process with all of the
        ``total`` parts and many with a few end in the same state.
        """
        if total < self.world:
            raise UserError(
                f"a batch of {total} part(s) cannot be shared by {self.world} processes: make it larger "
                "(--batch.parts where a study has it)"
            )
        mine = range(self.rank, total, self.world)
        buffers = [b for module in self._prepared for b in module.buffers()] if total > 1 else []
        before, after = [b.clone() for b in buffers], [torch.zeros_like(b) for b in buffers]
        for index in mine:
            with contextlib.ExitStack() as stack:
                if index != mine[-1]:
                    for module in wrapped:
                        stack.enter_context(self.accelerator.no_sync(module))
                yield index
            for buffer, start, moved in zip(buffers, before, after, strict=True):
                # A counter moves as by one part.
                moved.copy_(moved + buffer if buffer.is_floating_point() else buffer)
                buffer.copy_(start)
        sums = [moved for moved in after if moved.is_floating_point()]
        if sums:
            flat = self.sum(torch.cat([moved.flatten() for moved in sums])) / total
            for moved, mean in zip(sums, torch.split(flat, [moved.numel() for moved in sums]), strict=True):
                moved.copy_(mean.view_as(moved))
        for buffer, moved in zip(buffers, after, strict=True):
            buffer.copy_(moved)

    def accumulate(
        self, compute: Callable[[int], Mapping[str, Tensor]], parts: int, *wrapped: nn.Module
    ) -> dict[str, Tensor]:
        """Back-propagate the mean of the losses of a batch's parts, however they are spread over processes.

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
            # DDP takes the mean over processes of each one's sum.
            self.accelerator.backward(found["loss"] * (self.world / parts))
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
        """One step of an optimiser, as `prepare_optimizer` returned it, down the mean loss of parts: see `accumulate`.

        ``clip`` is the largest norm of the gradient over all of the optimiser's parameters, 0 for any; the returned
        means then have it as ``gradient``. None: it is not measured.
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
        """The rows ``[count, ...]`` that the processes made of their `share` each, ``[share, ...]``, in order."""
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
        """The state that the runtime itself must keep for an exact resume: the loss scale under fp16."""
        scaler = self.accelerator.scaler
        return {"scaler": scaler.state_dict()} if scaler is not None else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _keep_freed_memory() -> None:
    """Let glibc, where it is, keep large freed blocks for the next step, for which fresh pages cost a fault each."""
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
