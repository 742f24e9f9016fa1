"""The autoencoder of SlotDiffusion: its training step, and what is measured of its reconstructions.

Shape suffixes as in vae.py.
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core.runtime import Runtime
from etude.data.clevrtex import Scenes
from etude.data.render.driver import Split
from etude.metrics.segmentation import squared_error
from etude.nn.mean_weights import average_
from etude.nn.pixels import prepare
from etude.scenes.task import SceneTask, mirrored
from etude.studies.slotdiffusion.study import SlotDiffusionConfig
from etude.studies.slotdiffusion.vae import kl_loss, vq_loss
from etude.studies.slotdiffusion.vae_files import build_vae


class VAETask(SceneTask):
    """The autoencoder, trained on pixels alone: absolute error, and what keeps the latents in bounds."""

    measures_fid = False
    """Nothing is drawn; `etude check` asks."""

    def __init__(self, config: SlotDiffusionConfig, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self.vae = build_vae(config.vae)
        self.shared = runtime.prepare(self.vae, channels_last=True)
        self.mean = self.vae
        self.modules: dict[str, nn.Module] = {"last": self.vae} if config.optim.ema else {"vae": self.vae}
        if config.optim.ema:
            # What the diffusion reads.
            self.mean = copy.deepcopy(self.vae).requires_grad_(False)
            self.modules["vae"] = self.mean
        rate = config.optim.lr
        groups = [{"params": list(self.vae.parameters()), "initial_lr": rate}]
        self.optimizer = torch.optim.Adam(groups, rate, fused=True)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"adam": self.optimizer}
        self.monitor = ("error", "min")

    @property
    def exported(self) -> Mapping[str, nn.Module]:
        return {"vae": self.mean}

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.scenes.splits["train"]
        self.vae.train()
        rate = config.optim.set_rates(self.optimizer.param_groups, step, self.num_steps)
        rows, parts = self.batch_rows(step), config.batch.parts
        side = config.model.size // self.vae.stride

        def reconstruction(part: int) -> dict[str, Tensor]:
            images_BCHW = prepare(train.images_NHWC[rows[part::parts]])
            images_BCHW = mirrored(images_BCHW, self.flips(len(images_BCHW), step, part))
            if self.vae.kind == "vq":
                made_BCHW, named = self.shared(images_BCHW)
                error = functional.l1_loss(made_BCHW.float(), images_BCHW)
                codebook = vq_loss(named["codebook"], named["commitment"])
                return {"loss": error + codebook, "error": error, "codebook": codebook}
            noise_BDhw = self.normal("train/latent", step, part, len(images_BCHW), self.vae.latent_channels, side, side)
            made_BCHW, named = self.shared(images_BCHW, noise_BDhw)
            error = functional.l1_loss(made_BCHW.float(), images_BCHW)
            divergence = kl_loss(named["mean"].float(), named["log_variance"].float())
            # Latent diffusion sums both over a picture.
            loss = error + config.vae.kl_weight * divergence / images_BCHW[0].numel()
            return {"loss": loss, "error": error, "divergence": divergence}

        means = self.runtime.descend(self.shared_optimizer, reconstruction, parts, self.shared, clip=config.optim.clip)
        if config.optim.ema:
            average_(self.mean, self.vae, config.optim.ema, step)
        return means | {"rate": torch.full_like(means["loss"], rate)}

    @torch.no_grad()
    def reconstruct(self, images_NHWC: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows, pictures, reconstructions and latents, some scenes at a time."""
        self.mean.eval()
        for rows in self.batches(len(images_NHWC)):
            images_BCHW = prepare(images_NHWC[rows])
            z_BDhw = self.mean.encode(images_BCHW)
            yield rows, images_BCHW, self.mean.decode(z_BDhw).float(), z_BDhw

    def measure(self, scenes: Scenes) -> dict[str, Tensor]:
        """The absolute error, squared error as published, PSNR and latent's mean square of each scene."""
        share = self.runtime.share(len(scenes))
        found: dict[str, list[Tensor]] = {"error": [], "mse": [], "psnr": [], "power": []}
        for _, images, made, z in self.reconstruct(scenes.images_NHWC[share]):
            found["error"].append((made - images).abs().mean((1, 2, 3)))
            square_B = squared_error((made.clamp(-1, 1) + 1) / 2, (images + 1) / 2).float()
            found["mse"].append(square_B)
            found["psnr"].append(-10 * (square_B / images[0].numel()).clamp(min=1e-10).log10())
            found["power"].append(z.float().square().mean((1, 2, 3)))
        empty = torch.zeros(0, device=self.runtime.device)
        return {name: self.runtime.gather(torch.cat([empty, *rows]), len(scenes)).cpu() for name, rows in found.items()}

    def evaluate(self) -> dict[str, float]:
        return {name: values.double().mean().item() for name, values in self.measure(self.watched()).items()}

    @property
    def protocol(self) -> str:
        vae, side = self.config.vae, self.config.model.size // self.vae.stride
        return (
            f"{self.variant}; {vae.kind}, width {vae.width}, {vae.channels} x {side} x {side} numbers; absolute error "
            f"alone, {self.schooling}, chosen by validation error"
        )

    @property
    def cell(self) -> str:
        return f"vae-{self.config.vae.kind}-{self.config.vae.width}"

    def measured(self, split: Split) -> Iterator[tuple[str, Tensor, str, str]]:
        found = self.measure(self.scenes.splits[split])
        yield "psnr", found["psnr"].double(), "peak signal-to-noise ratio of a scene", "dB"
        yield "mse", found["mse"].double(), "squared error, summed over pixels and colours of [0, 1]", ""
