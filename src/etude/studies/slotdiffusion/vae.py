r"""The autoencoder of latent diffusion: pictures to maps of latents of a quarter of their side, and back.

Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models", section 3.1 and appendix G. Levels
of residual blocks halve the map, attention lets every place of the smallest one see every other, and the decoder is the
mirror. What keeps latents in bounds is one of two:

- ``kl``: the encoder gives the mean and the variance of a normal distribution, held near the standard one,

$$\operatorname{KL} = \tfrac12 \sum (\mu^2 + \sigma^2 - 1 - \log \sigma^2);$$

- ``vq``: each place is replaced by the nearest of K codes (van den Oord et al. 2017, equation 3), and the gradient
  passes straight through to the encoder:

$$\lVert \operatorname{sg}[z] - e \rVert^2 + \beta \lVert z - \operatorname{sg}[e] \rVert^2.$$

Modules are named as in the authors' code, so that `VAE.load_state_dict` takes what it saved; `load_vae` reads files.

Shape suffixes: B images, C channels, H W pixels of any map, h w places of the latents, N = H W places of a map,
D latent channels, M = B h w latent vectors, K codes.
"""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError
from etude.core.files import read_json
from etude.nn.fast_norms import GroupNorm
from etude.nn.norms import choose_groups

Kind = Literal["kl", "vq"]
LOG_VARIANCES = (-30.0, 20.0)
"""What the logarithms of variances are held between, as in the authors' code."""
GROUPS = 32
BETA = 0.25
"""The weight of the commitment (van den Oord et al. 2017, section 3.2)."""
_TOLERANCE = 1e-3
_DISTANCES = 1 << 22
"""How many distances to codes are held at a time: 16 MiB."""


def _norm(channels: int, groups: int) -> GroupNorm:
    norm = GroupNorm(channels, choose_groups(channels, groups), eps=1e-6)
    if channels % groups == 0:
        # Ours leaves two channels or more in a group; published weights were not always trained so.
        norm.groups = groups
    return norm


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


class ResidualBlock(nn.Module):
    """Twice a norm, a SiLU and a 3x3 convolution; a 1x1 convolution in the shortcut where the channels differ.

    Shape: ``[B, in_channels, H, W]`` -> ``[B, channels, H, W]``.
    """

    def __init__(self, in_channels: int, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = _norm(channels, groups)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x_BCHW)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return self.nin_shortcut(x_BCHW) + y


class Attention(nn.Module):
    """Self-attention with one head among the places of a map, added to it; all projections are 1x1 convolutions.

    Shape: ``[B, C, H, W]`` -> the same.
    """

    def __init__(self, channels: int, groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # As rows, or attention would fall back to a kernel that holds all N x N weights.
        y_BNC = self.norm(x_BCHW).permute(0, 2, 3, 1).flatten(1, 2)
        q_B1NC, k_B1NC, v_B1NC = (_project(layer, y_BNC)[:, None] for layer in (self.q, self.k, self.v))
        y_BNC = functional.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)[:, 0]
        return x_BCHW + _project(self.proj_out, y_BNC).mT.unflatten(2, x_BCHW.shape[2:])


def _project(layer: nn.Conv2d, x_BNC: Tensor) -> Tensor:
    """A 1x1 convolution of a map whose places are rows."""
    return functional.linear(x_BNC, layer.weight.flatten(1), layer.bias)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, with zeros on the right and below only.

    Shape: ``[B, C, H, W]`` -> ``[B, C, H // 2, W // 2]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(functional.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every place four times, then a 3x3 convolution.

    Shape: ``[B, C, H, W]`` -> ``[B, C, 2 H, 2 W]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


def _blocks(in_channels: int, channels: int, number: int, groups: int) -> nn.Sequential:
    befores = [in_channels] + [channels] * (number - 1)
    return nn.Sequential(*(ResidualBlock(before, channels, groups) for before in befores))


def _middle(channels: int, groups: int) -> nn.Sequential:
    return _named(
        block_1=ResidualBlock(channels, channels, groups),
        attn_1=Attention(channels, groups),
        block_2=ResidualBlock(channels, channels, groups),
    )


class Encoder(nn.Sequential):
    """Levels of residual blocks, each but the last followed by a halving; the middle; a norm and a convolution.

    Shape: ``[B, 3, H, W]`` -> ``[B, out_channels, H / 2^(levels - 1), W / 2^(levels - 1)]``.

    Args:
        channels: of each level.
        out_channels: of the result.
        num_blocks: in a level.
        groups: of the norms.
    """

    def __init__(self, channels: tuple[int, ...], out_channels: int, num_blocks: int = 2, groups: int = GROUPS) -> None:
        last = len(channels) - 1
        levels: list[nn.Module] = []
        for place, (before, after) in enumerate(zip((channels[0], *channels[:-1]), channels, strict=True)):
            block = _blocks(before, after, num_blocks, groups)
            levels.append(_named(block=block) if place == last else _named(block=block, downsample=Downsample(after)))
        parts = {
            "conv_in": nn.Conv2d(3, channels[0], 3, padding=1),
            "down": nn.Sequential(*levels),
            "mid": _middle(channels[-1], groups),
            "norm_out": _norm(channels[-1], groups),
            "act": nn.SiLU(),
            "conv_out": nn.Conv2d(channels[-1], out_channels, 3, padding=1),
        }
        super().__init__(OrderedDict(parts))


class Decoder(nn.Module):
    """The encoder's mirror, with one residual block a level more. ``up[0]`` is the last level, that of the picture.

    Shape: ``[B, in_channels, H, W]`` -> ``[B, 3, H 2^(levels - 1), W 2^(levels - 1)]``.

    Args:
        channels: of each level, in the encoder's order.
        in_channels: of the latents.
        num_blocks: in a level of the encoder.
        groups: of the norms.
    """

    def __init__(self, channels: tuple[int, ...], in_channels: int, num_blocks: int = 2, groups: int = GROUPS) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[-1], 3, padding=1)
        self.mid = _middle(channels[-1], groups)
        self.up = nn.ModuleList()
        for place, (before, after) in enumerate(zip((*channels[1:], channels[-1]), channels, strict=True)):
            block = _blocks(before, after, num_blocks + 1, groups)
            self.up.append(_named(block=block, upsample=Upsample(after)) if place else _named(block=block))
        self.norm_out = _norm(channels[0], groups)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z_BDhw))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class Quantized(NamedTuple):
    """What a codebook makes of latents.

    Attributes:
        z_BDhw: the nearest codes; its gradient is that of the latents.
        codes_Bhw: which they are, int64.
        codebook: mean square of codes minus latents; moves the codes.
        commitment: the same value; moves the latents.
    """

    z_BDhw: Tensor
    codes_Bhw: Tensor
    codebook: Tensor
    commitment: Tensor


class Codebook(nn.Module):
    """K vectors that stand for the latents nearest to them (van den Oord et al. 2017, section 3).

    Args:
        num_codes: K.
        size: D.
    """

    def __init__(self, num_codes: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, size)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    @torch.no_grad()
    def nearest(self, z_MD: Tensor) -> Tensor:
        """Which code is nearest to each vector, int64 ``[M]``; the first of equally near ones.

        A vector's own square is the same for all codes. Leaving it out also keeps differences between codes that are
        small beside it.
        """
        codes_KD = self.embedding.weight
        chunks = z_MD.to(codes_KD.dtype).split(max(1, _DISTANCES // len(codes_KD)))
        # Half precision would confuse codes that lie close together.
        with torch.autocast(z_MD.device.type, enabled=False):
            squares_K = codes_KD.square().sum(1)
            found = [torch.addmm(squares_K, chunk_MD, codes_KD.mT, alpha=-2).argmin(1) for chunk_MD in chunks]
        return torch.cat(found)

    def forward(self, z_BDhw: Tensor) -> Quantized:
        z_BhwD = z_BDhw.movedim(1, -1)
        codes_Bhw = self.nearest(z_BhwD.flatten(0, 2)).view(z_BhwD.shape[:3])
        nearest_BDhw = self.embedding(codes_Bhw).movedim(-1, 1)
        # In this order the values are exactly those of the codes.
        straight_BDhw = nearest_BDhw.detach() + (z_BDhw - z_BDhw.detach())
        codebook = functional.mse_loss(nearest_BDhw, z_BDhw.detach())
        commitment = functional.mse_loss(z_BDhw, nearest_BDhw.detach())
        return Quantized(straight_BDhw, codes_Bhw, codebook, commitment)


class VAE(nn.Module):
    """Pictures in [-1, 1] to latents and back.

    The defaults are the course's, 13,852,543 parameters; width 128 with ``vq`` is the published VQ-f4. Latents are not
    scaled: that is for the diffusion to do.

    Args:
        kind: what keeps latents in bounds.
        width: channels of the first level.
        multipliers: channels of each level, by the width; each level but the last halves the map.
        latent_channels: D.
        num_codes: K, for ``vq``.
        num_blocks: residual blocks in a level of the encoder; the decoder has one more.
        groups: of channels that are normalised together; fewer where that many do not divide a layer's channels.
    """

    def __init__(
        self, kind: Kind = "kl", *, width: int = 64, multipliers: tuple[int, ...] = (1, 2, 4), latent_channels: int = 3,
        num_codes: int = 8192, num_blocks: int = 2, groups: int = GROUPS,
    ) -> None:  # fmt: skip
        super().__init__()
        assert kind in get_args(Kind), kind
        self.kind: Kind = kind
        self.latent_channels = latent_channels
        self.stride = 1 << len(multipliers) - 1
        channels = tuple(width * multiplier for multiplier in multipliers)
        encoded = 2 * latent_channels if kind == "kl" else latent_channels
        self.encoder = Encoder(channels, encoded, num_blocks, groups)
        self.decoder = Decoder(channels, latent_channels, num_blocks, groups)
        self.quant_conv = nn.Conv2d(encoded, encoded, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        if kind == "vq":
            self.quantize = Codebook(num_codes, latent_channels)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Latents ``[B, D, h, w]``: the mean with ``kl``; with ``vq`` what the codebook has not yet rounded.

        Args:
            images_BCHW: ``[B, 3, H, W]`` in [-1, 1], both sides multiples of the stride.

        Raises:
            UserError: another shape or range.
        """
        self._check(images_BCHW)
        z = self._encoded(images_BCHW)
        return z.chunk(2, 1)[0] if self.kind == "kl" else z

    def _encoded(self, images_BCHW: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images_BCHW))

    def moments(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """With ``kl``: the mean and the logarithm of the variance, ``[B, D, h, w]`` each. Raises as `encode` does."""
        assert self.kind == "kl", "only kl has a distribution"
        self._check(images_BCHW)
        return self._moments(images_BCHW)

    def _moments(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean_BDhw, log_variance_BDhw = self._encoded(images_BCHW).chunk(2, 1)
        return mean_BDhw, log_variance_BDhw.clamp(*LOG_VARIANCES)

    def decode(self, z_BDhw: Tensor, *, quantize: bool = True) -> Tensor:
        """Pictures ``[B, 3, H, W]`` of latents; not held to [-1, 1].

        Args:
            z_BDhw: latents.
            quantize: with ``vq``, whether the nearest codes take the latents' place first; leave it so but for latents
                that are codes already.

        Raises:
            UserError: another number of channels or dimensions.
        """
        if z_BDhw.ndim != 4 or z_BDhw.shape[1] != self.latent_channels:
            raise UserError(f"latents must be [B, {self.latent_channels}, h, w], not {list(z_BDhw.shape)}")
        if self.kind == "vq" and quantize:
            z_BDhw = self.quantize(z_BDhw).z_BDhw
        return self.decoder(self.post_quant_conv(z_BDhw))

    def forward(self, images_BCHW: Tensor, noise_BDhw: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstructions, and what the loss needs by name.

        Args:
            images_BCHW: see `encode`; whether they are in [-1, 1] is not looked at, for in training that would wait for
                the device in every step.
            noise_BDhw: standard normal, for ``kl`` only; None: the mean is decoded.

        Returns:
            Pictures ``[B, 3, H, W]``; with ``kl`` ``mean``, ``log_variance`` and ``z``, the latents that were decoded;
            with ``vq`` ``z`` before rounding, ``codes`` ``[B, h, w]``, and the scalars ``codebook`` and ``commitment``.
        """
        self._check_shape(images_BCHW)
        if self.kind == "vq":
            assert noise_BDhw is None, "vq draws nothing"
            z_BDhw = self._encoded(images_BCHW)
            found = self.quantize(z_BDhw)
            named = {"z": z_BDhw, "codes": found.codes_Bhw}
            named |= {"codebook": found.codebook, "commitment": found.commitment}
            return self.decode(found.z_BDhw, quantize=False), named
        mean_BDhw, log_variance_BDhw = self._moments(images_BCHW)
        z_BDhw = mean_BDhw
        if noise_BDhw is not None:
            z_BDhw = mean_BDhw + (log_variance_BDhw / 2).exp() * noise_BDhw
        return self.decode(z_BDhw), {"mean": mean_BDhw, "log_variance": log_variance_BDhw, "z": z_BDhw}

    def _check_shape(self, images: Tensor) -> None:
        shape, stride = list(images.shape), self.stride
        if images.ndim != 4 or shape[1] != 3 or not images.is_floating_point():
            raise UserError(f"images must be [B, 3, H, W] of floating-point values, not {shape} of {images.dtype}")
        if shape[2] % stride or shape[3] % stride or not shape[2] * shape[3]:
            raise UserError(f"images of {shape[2]} x {shape[3]}: both sides must be multiples of {stride}, crop them")

    def _check(self, images: Tensor) -> None:
        self._check_shape(images)
        if not len(images):
            return
        low, high = torch.stack(torch.aminmax(images.detach())).tolist()
        # So written that NaN is refused.
        if not (low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE):
            raise UserError(f"images must be in [-1, 1], not in [{low:g}, {high:g}]: bytes are mapped by x / 127.5 - 1")


def kl_loss(mean_BDhw: Tensor, log_variance_BDhw: Tensor) -> Tensor:
    """The divergence of the latents' distribution from the standard normal, in nats.

    Summed over the latents of an image, mean over images. Source: Kingma and Welling 2014, appendix B.
    """
    nats = (mean_BDhw.square() + log_variance_BDhw.exp() - 1 - log_variance_BDhw) / 2
    return nats.flatten(1).sum(1).mean()


def vq_loss(codebook: Tensor, commitment: Tensor, beta: float = BETA) -> Tensor:
    """The codebook's term and beta times the commitment (van den Oord et al. 2017, equation 3).

    The code that VQ-f4 was trained with has beta on the other term, by what its authors call a bug.
    """
    return codebook + beta * commitment


# --- files ---

_FIRST = "encoder.conv_in.weight"
_CODES = "quantize.embedding.weight"
_PREFIXES = ("", "first_stage_model.", "model.", "vae.")
_NOT_OURS = ("loss.", "model_ema.")
_INNER_ATTENTION = re.compile(r"\.(down|up)(_blocks)?\.\d+\.(attn|attentions)\.")
_CONFIG, _FOLDER_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_CLASSES: dict[str, Kind] = {"AutoencoderKL": "kl", "VQModel": "vq"}
_SETTINGS = {
    "act_fn": "silu", "norm_type": "group", "mid_block_add_attention": True, "use_quant_conv": True,
    "use_post_quant_conv": True,
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
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise UserError(f"no autoencoder at {path}: give a .pth, .ckpt or .safetensors file, or a folder of diffusers")
    read: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(read, Mapping) and isinstance(read.get("state_dict"), Mapping):
        read = read["state_dict"]
    if not isinstance(read, Mapping):
        raise UserError(f"{path} holds a {type(read).__name__}, not a state dict: save model.state_dict()")
    state = {str(key): value for key, value in read.items()}
    prefix = next((prefix for prefix in _PREFIXES if prefix + _FIRST in state), "")
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return _build(state, path)


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
        return cast(Any, safetensors.torch).load_file(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: save with safe_serialization=True, in one piece") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}): copy it again") from error


def _load_folder(folder: Path) -> VAE:
    """A folder of diffusers."""
    path = folder / _CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {_CONFIG}: give the folder of the autoencoder itself, often vae or vqvae")
    config = read_json(path)
    met = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
    # A list: what stands there may have no hash.
    if not isinstance(config, dict) or met not in list(_CLASSES):
        raise UserError(f"{path} is of the class {met}: only {' and '.join(_CLASSES)} can be read")
    for name, wanted in _SETTINGS.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"{path} has {name} {config[name]!r}: only {wanted!r} is supported")
    groups = config.get("norm_num_groups", GROUPS)
    if not isinstance(groups, int) or groups < 1:
        raise UserError(f"{path} has norm_num_groups {groups!r}: give a number of 1 or more")
    weights = folder / _FOLDER_WEIGHTS
    return _build(_rename(_read_safetensors(weights)), weights, kind=_CLASSES[met], groups=groups)


def _rename(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under diffusers' names as tensors under the authors'."""
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
    return ours


def _build(state: Mapping[str, Any], path: Path, *, kind: Kind | None = None, groups: int = GROUPS) -> VAE:
    """The autoencoder of a state dict, its settings worked out from the shapes."""
    state = {key: value for key, value in state.items() if not key.startswith(_NOT_OURS)}
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            raise UserError(f"{path} has no floating-point tensor at {key}: keep only the state dict in it")
        if _INNER_ATTENTION.search(key):
            raise UserError(f"{path} has attention within a level ({key}), which is not supported: only in the middle")

    def size(key: str, dim: int, ndim: int = 4) -> int:
        if key not in state:
            raise UserError(f"{path} holds no autoencoder of latent diffusion: it lacks {key}")
        shape = list(state[key].shape)
        if len(shape) != ndim or not all(shape):
            raise UserError(f"{path} does not fit an autoencoder of latent diffusion: {key} is {shape}")
        return shape[dim]

    level, block = "encoder.down.{}.block.0.conv1.weight", "encoder.down.0.block.{}.conv1.weight"
    levels = next(number for number in count() if level.format(number) not in state)
    num_blocks = next(number for number in count() if block.format(number) not in state)
    width, latent_channels = size(_FIRST, 0), size("decoder.conv_in.weight", 1)
    channels = [size(level.format(number), 0) for number in range(max(levels, 1))]
    if any(number % width for number in channels):
        raise UserError(f"{path} has levels of {channels} channels: only multiples of the first layer's are supported")
    multipliers = tuple(number // width for number in channels)
    kind = kind or ("vq" if _CODES in state else "kl")
    num_codes = size(_CODES, 0, 2) if kind == "vq" else 1
    # Nothing is drawn, nor held twice.
    with torch.device("meta"):
        vae = VAE(
            kind, width=width, multipliers=multipliers, latent_channels=latent_channels, num_codes=num_codes,
            num_blocks=num_blocks, groups=groups,
        )  # fmt: skip
    _check_fit({key: tensor.shape for key, tensor in vae.state_dict().items()}, state, path)
    form = {"dtype": torch.float32, "copy": True, "memory_format": torch.contiguous_format}
    vae.load_state_dict({key: tensor.detach().to("cpu", **form) for key, tensor in state.items()}, assign=True)
    return vae


def _check_fit(wanted: Mapping[str, torch.Size], state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a state dict of other keys or shapes."""
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    differing = [
        f"{key} {list(state[key].shape)} for {list(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": differing}
    faults = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in kinds.items() if keys]
    if faults:
        raise UserError(f"{path} does not fit an autoencoder of latent diffusion; keys: {', '.join(faults)}")


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
