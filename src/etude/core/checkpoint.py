"""Checkpoints: safetensors weights, and what an exact resume needs beside them.

A checkpoint is a folder ``step-00001000`` with ``weights.safetensors``, ``resume.pt`` (read with
``weights_only=True``) and ``manifest.json`` with the digest of both. It is made under another name and
renamed into place, so it is whole or absent.
"""

import json
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from etude.core.errors import UserError, refuse_newer
from etude.core.files import as_json, one_line_faults, read_json, sha256, sweep, sync, umask, write_atomic, write_json

# Their annotations are partial.
_save_tensors = cast(Any, safetensors.torch).save
_safe_open = cast(Any, safetensors).safe_open

FORMAT = 1
_WEIGHTS, _RESUME, _MANIFEST = "weights.safetensors", "resume.pt", "manifest.json"


@dataclass(frozen=True)
class WeightsHeader:
    """The header of a weights file."""

    study: str
    """The study whose networks these are."""
    config: dict[str, Any]
    """The study's configuration, as `etude.core.config.to_dict` makes it."""
    extra: dict[str, Any]
    """The values that the study adds, such as a threshold set on the validation split."""


def save_weights(path: Path, modules: Mapping[str, nn.Module], header: WeightsHeader, *, half: bool = False) -> None:
    """Write named modules to one safetensors file, see `tensors_of` and `write_tensors`."""
    write_tensors(path, tensors_of(modules, half=half), header)


def tensors_of(modules: Mapping[str, nn.Module], *, half: bool = False) -> dict[str, Tensor]:
    """The parameters and buffers of named modules as ``name.key``, copied to the CPU; ``half``: floats as float16."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            kind = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
            # A copy, for safetensors refuses two names of one tensor.
            tensors[f"{name}.{key}"] = tensor.detach().to("cpu", kind, copy=True).contiguous()
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: WeightsHeader) -> None:
    """Write tensors, no two of which share memory, to one safetensors file, replaced once the new one is whole."""
    metadata = {"etude": json.dumps({"format": FORMAT} | vars(header))}
    # As bytes: safetensors' own writer answers a full disk with an error of its own.
    write_atomic(path, _save_tensors(dict(tensors), metadata=metadata))


def read_weights(path: Path, *, study: str | None = None) -> tuple[dict[str, Tensor], WeightsHeader]:
    """A weights file's tensors and header.

    Raises:
        UserError: no such file, a pickle, a truncated or foreign file, one of a newer etude, or one of
            another study than ``study``.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}")
    with path.open("rb") as file:
        start = file.read(9)
    # The length that a safetensors file starts with may look like a pickle; its header's brace does not.
    if start[8:] not in (b"", b"{") and start.startswith((b"PK", b"\x80")):
        raise UserError(f"{path} is a pickle, which can run code when read: etude reads safetensors files only")
    try:
        with _safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}): copy or export it again") from error
    try:
        about = json.loads(metadata["etude"])
        number, header = int(about["format"]), WeightsHeader(about["study"], about["config"], about["extra"])
        if [type(value) for value in vars(header).values()] != [str, dict, dict]:
            raise TypeError("a study's name and two mappings")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} was not written by etude: it has no header of ours") from error
    refuse_newer(path, number, FORMAT)
    if study is not None and header.study != study:
        raise UserError(f"{path} is a checkpoint of the study '{header.study}', not of '{study}'")
    return tensors, header


def load_weights(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Copy a weights file's tensors into named modules; every key and shape must match."""
    for name, module in modules.items():
        prefix = f"{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{origin} does not fit the network '{name}': {reason}") from error


def refuse_other_network(header: WeightsHeader, config: Mapping[str, Any], origin: Path) -> None:
    """Refuse weights whose network had other settings than ``config`` says, which keys and shapes need not tell."""
    was, now = header.config.get("model", {}), config.get("model", {})
    for name in was.keys() & now.keys():
        # A user's own part may lie elsewhere now.
        if was[name] != now[name] and ".py:" not in f"{was[name]}{now[name]}":
            raise UserError(
                f"{origin} was trained with model.{name} {was[name]}, and config.yaml says {now[name]}: "
                "put that back, or train a new run"
            )


class Checkpoints:
    """The folder ``checkpoints/`` of a run: the newest few, and the best by a validation metric."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk, oldest first."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint by the validation metric, if one was marked."""
        path = self.folder / "best.json"
        if not path.exists():
            return None
        about: Any = read_json(path)
        step: Any = cast(Any, about).get("step") if isinstance(about, dict) else None
        if type(step) is not int or not 0 <= step < 10**12:
            raise UserError(f"{path} names no step: delete it, and the newest checkpoint is taken")
        return step

    def mark_best(self, step: int, metric: str, value: float) -> None:
        write_json(self.folder / "best.json", {"step": step, "metric": metric, "value": value})

    def save(
        self, step: int, modules: Mapping[str, nn.Module], header: WeightsHeader, resume: Mapping[str, Any]
    ) -> Path:
        """Write the checkpoint of a step whole, or raise `UserError` and leave the others as they were."""
        final = self.path(step)
        if final.exists() and self.fault(step) is None:
            return final
        with one_line_faults(final):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=self.folder))
            try:
                save_weights(temporary / _WEIGHTS, modules, header)
                write_atomic(temporary / _RESUME, lambda to: _save_resume(dict(resume), to))
                digests = {name: sha256(temporary / name) for name in (_WEIGHTS, _RESUME)}
                write_json(temporary / _MANIFEST, _manifest(step, digests))
                temporary.chmod(0o777 & ~umask())
                # A broken one that a resume passed over may stand there.
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            sync(self.folder)
        return final

    def prune(self, newest: int) -> None:
        """Remove what a crash left and, up to the step ``newest``, all but ``keep`` checkpoints and the best one.

        Later ones are broken: a resume passed over them, and a step that comes again replaces them.
        """
        for step in [step for step in self.steps() if step <= newest][: -self.keep]:
            if step != self.best_step:
                shutil.rmtree(self.path(step), ignore_errors=True)
        sweep(self.folder)

    def fault(self, step: int) -> str | None:
        """The reason why the checkpoint of a step cannot be used, or None if its digests hold."""
        path = self.path(step)
        try:
            manifest = read_json(path / _MANIFEST)
            if manifest["format"] > FORMAT:
                try:
                    # Weights say their format too: where they are ours, a byte of the manifest changed.
                    read_weights(path / _WEIGHTS)
                except UserError:
                    refuse_newer(path, manifest["format"], FORMAT)
            for name in (_WEIGHTS, _RESUME):
                if not (path / name).is_file():
                    return f"{name} is missing"
                if sha256(path / name) != manifest["sha256"][name]:
                    return f"{name} does not match its checksum"
            if (path / _MANIFEST).read_text(encoding="utf-8") != as_json(_manifest(step, manifest["sha256"])):
                return f"{_MANIFEST} is not as it was written"
        except (KeyError, TypeError, AttributeError, OSError) as error:
            return f"its manifest is broken ({error!r})"
        except UserError as error:
            if "newer etude" in str(error):
                raise
            return str(error)
        return None

    def newest(self) -> int | None:
        """The newest step whose checkpoint is whole; a broken one is named in a warning and passed over."""
        return next(filter(self.usable, reversed(self.steps())), None)

    def usable(self, step: int) -> bool:
        """True where the checkpoint of a step is whole; a warning says what is wrong with one that is not."""
        fault = self.fault(step)
        if fault is not None:
            warnings.warn(f"{self.path(step)} is not used: {fault}", RuntimeWarning, stacklevel=2)
        return fault is None

    def weights(self, step: int) -> Path:
        """The weights file of a step, its checksum tried; `UserError` where the checkpoint is broken."""
        # Weights that `etude load` brought stand alone.
        fault = self.fault(step) if (self.path(step) / _MANIFEST).exists() else None
        if fault is not None:
            raise UserError(f"{self.path(step)} is broken: {fault}: put a copy of it back, or train a new run")
        return self.path(step) / _WEIGHTS

    def load_weights(self, step: int, modules: Mapping[str, nn.Module], study: str) -> WeightsHeader:
        """Copy the weights of a step into named modules."""
        path = self.weights(step)
        tensors, header = read_weights(path, study=study)
        load_weights(modules, tensors, path)
        return header

    def load_resume(self, step: int) -> dict[str, Any]:
        """The resume state of a step, on the CPU. Code in it is never run."""
        return read_resume(self.path(step) / _RESUME)


def _manifest(step: int, digests: Mapping[str, str]) -> dict[str, Any]:
    return {"format": FORMAT, "step": step, "sha256": {name: digests[name] for name in (_WEIGHTS, _RESUME)}}


def _save_resume(state: dict[str, Any], to: Path) -> None:
    # torch's zip writer turns a full disk into a RuntimeError; a plain file keeps the OSError.
    try:
        with to.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else OSError(28, "No space left on device")
        raise cause from error


def read_resume(path: Path) -> dict[str, Any]:
    """A resume file's state; `UserError` where it holds code or is broken."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and plain values: refused, for it could run code") from error
    except Exception as error:  # broken bytes raise nearly every kind
        raise UserError(f"{path} is truncated or broken ({' '.join(str(error).split())[:120]})") from error
