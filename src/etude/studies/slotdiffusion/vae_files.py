"""Files of trained autoencoders: those of etude's own runs, of latent diffusion, and of diffusers.

Tensors are named as in vae.py, which is how latent diffusion's authors name them.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from etude.core.checkpoint import Checkpoints, read_weights
from etude.core.errors import UserError
from etude.core.files import expanded, read_json
from etude.studies.slotdiffusion.study import UNTRAINED, VAEConfig
from etude.studies.slotdiffusion.vae import GROUPS, VAE, Kind

_FIRST, _CODES = "encoder.conv_in.weight", "quantize.embedding.weight"
_PREFIXES = ("", "first_stage_model.", "model.", "vae.")
_NOT_OURS = ("loss.", "model_ema.")
_INNER_ATTENTION = re.compile(r"\.(down|up)(_blocks)?\.\d+\.(attn|attentions)\.")
_CLASSES: dict[str, Kind] = {"AutoencoderKL": "kl", "VQModel": "vq"}
_SETTINGS = {
    "act_fn": "silu", "norm_type": "group", "norm_num_groups": GROUPS, "mid_block_add_attention": True,
    "use_quant_conv": True, "use_post_quant_conv": True,
}  # fmt: skip
# From diffusers' names to the authors'; the older names of its attention are the second ones.
_RENAMED = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.(to_q|query)\.", ".attn_1.q."),
    (r"\.attn_1\.(to_k|key)\.", ".attn_1.k."),
    (r"\.attn_1\.(to_v|value)\.", ".attn_1.v."),
    (r"\.attn_1\.(to_out\.0|proj_attn)\.", ".attn_1.proj_out."),
    (r"\.down_blocks\.", ".down."),
    (r"\.resnets\.", ".block."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
_ATTENTION_WEIGHT = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$")


def build_vae(config: VAEConfig) -> VAE:
    """The autoencoder of a configuration, with its first weights."""
    return VAE(
        config.kind, width=config.width, multipliers=config.multipliers, latent_channels=config.channels,
        num_codes=config.codes, num_blocks=config.blocks,
    )  # fmt: skip


def read_vae(vae: VAE, given: str) -> None:
    """Put trained weights into an autoencoder.

    Args:
        vae: of the configuration.
        given: a run of etude or a file of its, or what `load_vae` reads; `UNTRAINED`: nothing happens.

    Raises:
        UserError: there is nothing of that name, or it is of other sizes.
    """
    if given == UNTRAINED:
        return
    if not given:
        raise UserError(
            "no autoencoder: train one (etude run slotdiffusion vae-laptop) and name its run, --vae.weights "
            "runs/slotdiffusion/vae-laptop, or give a file in the layout of latent diffusion"
        )
    path = expanded(given, "--vae.weights")
    if (path / "checkpoints").is_dir():
        checkpoints = Checkpoints(path / "checkpoints", keep=1)
        step = checkpoints.best_step or checkpoints.newest()
        if step is None:
            raise UserError(f"{path} has no checkpoint: train it to its end first")
        path = checkpoints.weights(step)
    if (path / "weights.safetensors").is_file():
        path = path / "weights.safetensors"
    state, sizes = _read(path)
    if {key: value.shape for key, value in state.items()} != _shapes(vae):
        told = {name: getattr(sizes, name) for name in ("kind", "width", "multipliers", "channels", "blocks")}
        told |= {"multipliers": " ".join(map(str, sizes.multipliers))}
        told |= {"codes": sizes.codes} if sizes.kind == "vq" else {}
        flags = " ".join(f"--vae.{name} {value}" for name, value in told.items())
        raise UserError(f"{path} is an autoencoder of other sizes: give {flags}")
    vae.load_state_dict(state)


def load_vae(path: Path | str) -> VAE:
    """An autoencoder from a file or a folder, of the kind and the sizes that its tensors have; float32, on the CPU.

    A file is what ``torch.save`` (read without running code in it) or safetensors wrote of a state dict in the authors'
    layout, plain or under ``state_dict``; the keys may begin with ``first_stage_model.``, as in a checkpoint of a whole
    latent diffusion, ``model.`` or ``vae.``, and then all others are passed over. ``loss.`` and ``model_ema.`` always
    are. A folder is one that diffusers saved an ``AutoencoderKL`` or a ``VQModel`` to.

    Raises:
        UserError: no such file, one that holds code or is broken, keys that are missing or unknown, other shapes, and
            what is not supported: attention within levels, none in the middle, other classes of diffusers.
    """
    state, sizes = _read(Path(path))
    # Nothing is drawn, nor held twice.
    with torch.device("meta"):
        vae = build_vae(sizes)
    form = {"dtype": torch.float32, "copy": True, "memory_format": torch.contiguous_format}
    vae.load_state_dict({key: tensor.detach().to("cpu", **form) for key, tensor in state.items()}, assign=True)
    return vae


def _read(path: Path) -> tuple[dict[str, Tensor], VAEConfig]:
    """The tensors of a file or a folder under the names of vae.py, and the sizes that they have."""
    kind: Kind | None = None
    if path.is_dir():
        state, kind = _read_folder(path)
    elif not path.is_file():
        raise UserError(f"no autoencoder at {path}: give a .pth, .ckpt or .safetensors file, or a folder of diffusers")
    else:
        read: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        if isinstance(read, Mapping) and isinstance(read.get("state_dict"), Mapping):
            read = read["state_dict"]
        if not isinstance(read, Mapping):
            raise UserError(f"{path} holds a {type(read).__name__}, not a state dict: save model.state_dict()")
        state = {str(key): value for key, value in read.items()}
        prefix = next((prefix for prefix in _PREFIXES if prefix + _FIRST in state), "")
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    state = {key: value for key, value in state.items() if not key.startswith(_NOT_OURS)}
    if _FIRST not in state:
        raise UserError(f"{path} holds no autoencoder of latent diffusion: it lacks {_FIRST}")
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            raise UserError(f"{path} has no floating-point tensor at {key}: keep only the state dict in it")
        if _INNER_ATTENTION.search(key):
            raise UserError(f"{path} has attention within a level ({key}), which is not supported: only in the middle")
    return state, _sizes(state, path, kind)


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # What it says of pickles of other programs, the error says.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes raise nearly every kind
        if isinstance(error, pickle.UnpicklingError) and "nsupported global" in str(error):
            raise UserError(
                f"{path} holds more than tensors, which could run code when read: where you trust it, save its "
                "state dict alone and give that file"
            ) from error
        raise UserError(f"{path} is truncated or not a file of torch.save: copy or save it again") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        _, header = read_weights(path)
    except UserError:
        # Not a file of etude's own.
        header = None
    if header is not None and header.study != "slotdiffusion":
        raise UserError(f"{path} is a checkpoint of the study '{header.study}', not of 'slotdiffusion'")
    try:
        return cast(Any, safetensors.torch).load_file(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: save with safe_serialization=True, in one piece") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}): copy it again") from error


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], Kind]:
    """The tensors of a folder of diffusers under the authors' names, and the kind of autoencoder."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no {path.name}: give the folder of the autoencoder itself, often vae or vqvae")
    config = read_json(path)
    met = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
    # A list: what stands there may have no hash.
    if not isinstance(config, dict) or met not in list(_CLASSES):
        raise UserError(f"{path} is of the class {met}: only {' and '.join(_CLASSES)} can be read")
    for name, wanted in _SETTINGS.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"{path} has {name} {config[name]!r}: only {wanted!r} is supported")
    theirs = _read_safetensors(folder / "diffusion_pytorch_model.safetensors")
    ups = [re.match(r"decoder\.up_blocks\.(\d+)\.", key) for key in theirs]
    last = max((int(match[1]) for match in ups if match), default=0)
    ours: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        if not _INNER_ATTENTION.search(key):
            for pattern, name in _RENAMED:
                key = re.sub(pattern, name, key)
            key = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up.{last - int(found[1])}.", key)
        if _ATTENTION_WEIGHT.search(key) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        ours[key] = tensor
    return ours, _CLASSES[met]


def _sizes(state: Mapping[str, Tensor], path: Path, kind: Kind | None) -> VAEConfig:
    """The settings of a state dict, worked out from its shapes; a `UserError` where no autoencoder has them."""

    def size(key: str, dim: int, ndim: int = 4) -> int:
        if key not in state:
            raise UserError(f"{path} holds no autoencoder of latent diffusion: it lacks {key}")
        shape = list(state[key].shape)
        if len(shape) != ndim or not all(shape):
            raise UserError(f"{path} does not fit an autoencoder of latent diffusion: {key} is {shape}")
        return shape[dim]

    level, block = "encoder.down.{}.block.0.conv1.weight", "encoder.down.0.block.{}.conv1.weight"
    levels = next(number for number in count() if level.format(number) not in state)
    width, channels = size(_FIRST, 0), size("decoder.conv_in.weight", 1)
    widths = [size(level.format(number), 0) for number in range(max(levels, 1))]
    if any(wide % width for wide in widths):
        raise UserError(f"{path} has levels of {widths} channels: only multiples of the first layer's are supported")
    kind = kind or ("vq" if _CODES in state else "kl")
    sizes = VAEConfig(
        kind=kind, width=width, multipliers=tuple(wide // width for wide in widths), channels=channels,
        blocks=next(number for number in count() if block.format(number) not in state),
        codes=max(2, size(_CODES, 0, 2)) if kind == "vq" else 2,
    )  # fmt: skip
    with torch.device("meta"):
        wanted = _shapes(build_vae(sizes))
    kinds = {
        "missing": [key for key in wanted if key not in state],
        "unknown": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {list(state[key].shape)} for {list(shape)}"
            for key, shape in wanted.items()
            if key in state and state[key].shape != shape
        ],
    }
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in kinds.items()
        if keys
    ]
    if faults:
        raise UserError(f"{path} does not fit an autoencoder of latent diffusion; keys: {', '.join(faults)}")
    return sizes


def _shapes(vae: VAE) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in vae.state_dict().items()}
