r"""The autoencoder of latent diffusion: pictures to maps of latents of a quarter of their side, and back.

Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models", section 3.1 and appendix G. Levels
of residual blocks halve the map, attention lets every place of the smallest one see every other, and the decoder is the
mirror. What keeps latents in bounds is one of two:

- ``kl``: the encoder gives the mean and the variance of a normal distribution, held near the standard one,

$$\operatorname{KL} = \tfrac12 \sum (\mu^2 + \sigma^2 - 1 - \log \sigma^2);$$

- ``vq``: each place is replaced by the nearest of K codes (van den Oord et al. 2017, equation 3), and the gradient
  passes straight through to the encoder:

$$\lVert \operatorname{sg}[z] - e \rVert^2 + \beta \lVert z - \operatorname{sg}[e] \rVert^2.$$

Modules are named as in the authors' code, so that `VAE.load_state_dict` takes what it saved; vae_files.py reads files.

Shape suffixes: B images, C channels, H W pixels of any map, h w places of the latents, N = H W places of a map,
D latent channels, M = B h w latent vectors, K codes.
"""

from collections import OrderedDict
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.nn.fast_norms import GroupNorm
from etude.nn.norms import choose_groups

Kind = Literal["kl", "vq"]
LOG_VARIANCES = (-30.0, 20.0)
"""The bounds of the logarithms of variances, as in the authors' code."""
GROUPS = 32
"""The groups of channels that are normalised together; fewer where that many do not divide a layer's channels."""
BETA = 0.25
"""The weight of the commitment (van den Oord et al. 2017, section 3.2)."""
_DISTANCES = 1 << 22
"""The distances to codes that are held at a time: 16 MiB."""


def _norm(channels: int) -> GroupNorm:
    norm = GroupNorm(channels, choose_groups(channels, GROUPS), eps=1e-6)
    if channels % GROUPS == 0:
        # Ours leaves two channels or more in a group; published weights were not always trained so.
        norm.groups = GROUPS
    return norm


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


class ResidualBlock(nn.Module):
    """Twice a norm, a SiLU and a 3x3 convolution; a 1x1 convolution in the shortcut where the channels differ.

    Shape: ``[B, in_channels, H, W]`` -> ``[B, channels, H, W]``.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = _norm(channels)
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

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
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


def _blocks(in_channels: int, channels: int, number: int) -> nn.Sequential:
    befores = [in_channels] + [channels] * (number - 1)
    return nn.Sequential(*(ResidualBlock(before, channels) for before in befores))


def _middle(channels: int) -> nn.Sequential:
    return _named(
        block_1=ResidualBlock(channels, channels),
        attn_1=Attention(channels),
        block_2=ResidualBlock(channels, channels),
    )


class Encoder(nn.Sequential):
    """Levels of residual blocks, each but the last followed by a halving; the middle; a norm and a convolution.

    Shape: ``[B, 3, H, W]`` -> ``[B, out_channels, H / 2^(levels - 1), W / 2^(levels - 1)]``.
    """

    def __init__(self, channels: tuple[int, ...], out_channels: int, num_blocks: int = 2) -> None:
        last = len(channels) - 1
        levels: list[nn.Module] = []
        for place, (before, after) in enumerate(zip((channels[0], *channels[:-1]), channels, strict=True)):
            block = _blocks(before, after, num_blocks)
            levels.append(_named(block=block) if place == last else _named(block=block, downsample=Downsample(after)))
        parts = {
            "conv_in": nn.Conv2d(3, channels[0], 3, padding=1),
            "down": nn.Sequential(*levels),
            "mid": _middle(channels[-1]),
            "norm_out": _norm(channels[-1]),
            "act": nn.SiLU(),
            "conv_out": nn.Conv2d(channels[-1], out_channels, 3, padding=1),
        }
        super().__init__(OrderedDict(parts))


class Decoder(nn.Module):
    """The encoder's mirror, with one residual block a level more. ``up[0]`` is the last level, that of the picture.

    Shape: ``[B, in_channels, H, W]`` -> ``[B, 3, H 2^(levels - 1), W 2^(levels - 1)]``.
    """

    def __init__(self, channels: tuple[int, ...], in_channels: int, num_blocks: int = 2) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[-1], 3, padding=1)
        self.mid = _middle(channels[-1])
        self.up = nn.ModuleList()
        for place, (before, after) in enumerate(zip((*channels[1:], channels[-1]), channels, strict=True)):
            block = _blocks(before, after, num_blocks + 1)
            self.up.append(_named(block=block, upsample=Upsample(after)) if place else _named(block=block))
        self.norm_out = _norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z_BDhw))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class Quantized(NamedTuple):
    """The codes nearest to latents, and the two terms of the loss."""

    z_BDhw: Tensor
    """The nearest codes; their gradient is that of the latents."""
    codes_Bhw: Tensor
    """The numbers of those codes, int64."""
    codebook: Tensor
    """The mean square of codes minus latents; it moves the codes."""
    commitment: Tensor
    """The same value; it moves the latents."""


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
        """The code that is nearest to each vector, int64 ``[M]``; the first of equally near ones.

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
    """

    def __init__(
        self, kind: Kind = "kl", *, width: int = 64, multipliers: tuple[int, ...] = (1, 2, 4), latent_channels: int = 3,
        num_codes: int = 8192, num_blocks: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind: Kind = kind
        self.latent_channels = latent_channels
        self.stride = 1 << len(multipliers) - 1
        channels = tuple(width * multiplier for multiplier in multipliers)
        encoded = 2 * latent_channels if kind == "kl" else latent_channels
        self.encoder = Encoder(channels, encoded, num_blocks)
        self.decoder = Decoder(channels, latent_channels, num_blocks)
        self.quant_conv = nn.Conv2d(encoded, encoded, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        if kind == "vq":
            self.quantize = Codebook(num_codes, latent_channels)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Latents ``[B, D, h, w]`` of pictures ``[B, 3, H, W]``, whose sides are multiples of the stride.

        With ``kl`` they are the mean, with ``vq`` what the codebook has not yet rounded.
        """
        z = self.quant_conv(self.encoder(images_BCHW))
        return z.chunk(2, 1)[0] if self.kind == "kl" else z

    def decode(self, z_BDhw: Tensor, *, quantize: bool = True) -> Tensor:
        """Pictures ``[B, 3, H, W]`` of latents ``[B, D, h, w]``; not held to [-1, 1].

        With ``vq`` the nearest codes take the latents' place first; ``quantize`` is off for latents that are codes.
        """
        if self.kind == "vq" and quantize:
            z_BDhw = self.quantize(z_BDhw).z_BDhw
        return self.decoder(self.post_quant_conv(z_BDhw))

    def forward(self, images_BCHW: Tensor, noise_BDhw: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstructions, and what the loss needs by name.

        Args:
            images_BCHW: see `encode`.
            noise_BDhw: standard normal, for ``kl`` only; None: the mean is decoded.

        Returns:
            Pictures ``[B, 3, H, W]``; with ``kl`` ``mean``, ``log_variance`` and ``z``, the latents that were decoded;
            with ``vq`` ``z`` before rounding, ``codes`` ``[B, h, w]``, and the scalars ``codebook`` and ``commitment``.
        """
        z_BDhw = self.quant_conv(self.encoder(images_BCHW))
        if self.kind == "vq":
            found = self.quantize(z_BDhw)
            named = {"z": z_BDhw, "codes": found.codes_Bhw}
            named |= {"codebook": found.codebook, "commitment": found.commitment}
            return self.decode(found.z_BDhw, quantize=False), named
        mean_BDhw, log_variance_BDhw = z_BDhw.chunk(2, 1)
        log_variance_BDhw = log_variance_BDhw.clamp(*LOG_VARIANCES)
        z_BDhw = mean_BDhw
        if noise_BDhw is not None:
            z_BDhw = mean_BDhw + (log_variance_BDhw / 2).exp() * noise_BDhw
        return self.decode(z_BDhw), {"mean": mean_BDhw, "log_variance": log_variance_BDhw, "z": z_BDhw}


def kl_loss(mean_BDhw: Tensor, log_variance_BDhw: Tensor) -> Tensor:
    """The divergence of the latents' distribution from the standard normal, in nats.

    Summed over the latents of an image, mean over images. Source: Kingma and Welling 2014, appendix B.
    """
    nats = (mean_BDhw.square() + log_variance_BDhw.exp() - 1 - log_variance_BDhw) / 2
    return nats.flatten(1).sum(1).mean()


def vq_loss(codebook: Tensor, commitment: Tensor) -> Tensor:
    """The codebook's term and beta times the commitment (van den Oord et al. 2017, equation 3).

    The code that VQ-f4 was trained with has beta on the other term, by what its authors call a bug.
    """
    return codebook + BETA * commitment
