"""Slots of a picture, and a network that removes noise from its latent by them (Wu et al. 2023, SlotDiffusion).

Shape suffixes: B images, C colours or channels of a latent, H W pixels, h w places of a latent, N of them, K slots,
S a slot's size, T iterations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core import randomness
from etude.scenes.encoder import build_encoder
from etude.scenes.slot_library import CARD
from etude.studies.slotdiffusion.diffusion import Schedule
from etude.studies.slotdiffusion.samplers import OnStep, draw, guided, image_generators, make_sampler
from etude.studies.slotdiffusion.study import ChainConfig, ModelConfig, SampleConfig
from etude.studies.slotdiffusion.unet import UNet
from etude.studies.slotdiffusion.vae import VAE


class SlotDiffusion(nn.Module):
    """The slots' encoder and the U-Net, trained together.

    Args:
        config: their settings.
        channels: of a latent.
    """

    scale: Tensor
    """The factor by which latents have a variance of one."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.unet = UNet(
            channels, config.width, config.multipliers, config.slot_size, heads=config.heads, dropout=config.dropout,
            depth=config.depth, blocks=config.blocks, head_size=config.head_size,
        )  # fmt: skip
        self.register_buffer("scale", torch.ones(()))

    def forward(
        self, images_BCHW: Tensor, z_BChw: Tensor, t_B: Tensor, noise_BKS: Tensor, drop_B: Tensor, *,
        spread: float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """The noise in latents, by the slots of their pictures.

        Args:
            images_BCHW: pictures in [-1, 1].
            z_BChw: their latents, scaled, with noise.
            t_B: the place of each in the chain.
            noise_BKS: that the slots begin with.
            drop_B: bool; the slots of these are left out.
            spread: of the noise, see `SlotAttention.first`.

        Returns:
            noise or velocity ``[B, C, h, w]``, and by name ``slots`` ``[B, K, S]`` and ``attention`` ``[B, T, K, N]``.
        """
        found = self.encoder(images_BCHW, noise_BKS, spread=spread)
        # Without a condition on the rate: several processes wait for a gradient of every parameter.
        slots_BKS = self.unet.dropped(found.slots_BKS, drop_B)
        return self.unet(z_BChw, t_B, slots_BKS), {"slots": found.slots_BKS, "attention": found.attention_BTKN}

    @torch.no_grad()
    def card(self, slots_KS: Tensor) -> Tensor:
        """The noise seen by some slots in a fixed latent, ``[3, 8, 8]``, by which a slot library knows the model."""
        side, device = 8 << len(self.config.multipliers) - 1, self.scale.device
        z_BChw = draw(image_generators(0, "card", slice(0, 1)), (self.unet.channels, side, side)).to(device)
        noise_BChw = self.unet(z_BChw, torch.full((1,), 100, device=device), slots_KS[None].to(device))
        small = functional.adaptive_avg_pool2d(noise_BChw[0].float().cpu(), CARD)
        # A latent may have another number of channels than a picture.
        return small.mean(0, keepdim=True).expand(3, -1, -1).clone() if len(small) != 3 else small


def attention_masks(attention_BTKN: Tensor, places: tuple[int, int], size: int) -> Tensor:
    """Shares ``[B, K, size, size]`` of the pixels: the last iteration's attention, interpolated.

    The assignment's stand-in for masks (seed 001, section 2.3), which a decoder that paints all slots at once lacks.
    """
    maps_BKhw = attention_BTKN[:, -1].float().unflatten(-1, places)
    return functional.interpolate(maps_BKhw, size=(size, size), mode="bilinear", align_corners=False)


def schedule_of(config: ChainConfig) -> Schedule:
    """The chain of a configuration."""
    return Schedule(config.steps, config.first, config.last, config.spacing)


class Painter:
    """Draws pictures of slots: noise, the U-Net step by step, the autoencoder's decoder.

    Args:
        model: trained.
        vae: that it stands on.
        schedule: of its training.
        config: the sampler and its steps.
        seed: of the noise.
    """

    def __init__(self, model: SlotDiffusion, vae: VAE, schedule: Schedule, config: SampleConfig, seed: int) -> None:
        self.model, self.vae, self.schedule, self.config, self.seed = model, vae, schedule, config, seed
        self.sampler = make_sampler(config.sampler)

    @torch.no_grad()
    def latents(
        self, slots_BKS: Tensor, images: slice | Sequence[int], stream: str, on_step: OnStep | None = None
    ) -> Tensor:
        """Latents ``[B, C, h, w]`` as the U-Net knows them.

        Args:
            slots_BKS: slots, any number of them.
            images: the pictures' numbers, by which their noise is keyed; of one number there is one noise.
            stream: what is drawn.
            on_step: see samplers.py.
        """
        unet, config = self.model.unet, self.model.config
        device = self.model.scale.device
        side = config.size // self.vae.stride
        numbers = range(images.start, images.stop) if isinstance(images, slice) else images
        generators = [randomness.generator(self.seed, stream, 0, number) for number in numbers]
        z_BChw = draw(generators, (unet.channels, side, side)).to(device)
        # What the slots are worth to each layer is the same at every step.
        given = unet.context(slots_BKS.to(device))
        none = unet.context(unet.no_slots.expand(1, slots_BKS.shape[1], -1))
        # Pairs in a row, as plain tensors.
        flat = [[part for pair in context for part in pair] for context in (given, none)]

        def predict(z: Tensor, t: Tensor, *parts: Tensor) -> Tensor:
            found = unet(z, t[:1], context=list(zip(parts[::2], parts[1::2], strict=True)))
            return found if config.target == "noise" else self.schedule.noise_of_velocity(z, t, found)

        return self.sampler(
            guided(predict, flat[0], flat[1], self.config.guidance), self.schedule, z_BChw, generators,
            steps=self.config.steps, on_step=on_step,
        )  # fmt: skip

    @torch.no_grad()
    def decode(self, z_BChw: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]``, about [-1, 1], of latents as the U-Net knows them."""
        return self.vae.decode(z_BChw / self.model.scale)

    def paint(
        self, slots_BKS: Tensor, images: slice | Sequence[int], stream: str, on_step: OnStep | None = None
    ) -> Tensor:
        """Pictures of slots, see `latents`."""
        return self.decode(self.latents(slots_BKS, images, stream, on_step))
