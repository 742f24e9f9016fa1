r"""Grad-CAM: where the network looks for a class (Selvaraju et al. 2017).

With the feature maps $A_k$ of a layer and the score $s$ of a class, the map is
$\max(0, \sum_k \overline{\partial s / \partial A_k} A_k)$, stretched to [0, 1]; the bar is the mean over pixels. Here
the maps of the last stage's 2n convolutions are averaged, and stretched to [0, 1] again.

`package_cam` asks the grad-cam package. `batched_cam` computes the same on the device: the pass back ends where the
last stage begins, and nothing is copied to the CPU; it is for whole sets.

Shape suffixes as in model.py; L layers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError, nearest
from etude.data import folders
from etude.data.images import Fit
from etude.studies.resnet.model import Block, ResNet

_SHEET_CLASSES = 7
GAP = 4
"""Pixels of white between a photograph and its map."""


class LogitsOnly(nn.Module):
    """The network as the package wants it: pictures to logits alone."""

    def __init__(self, model: ResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # Not the compiled one: its backward pass runs once only, and hooks see nothing of it.
        return self.model.forward(x_NCHW)[0]


def target_layers(model: ResNet) -> list[nn.Module]:
    """The convolutions of the last stage, 2n of them."""
    blocks: Sequence[Block] = list(model.stages[-1])  # pyright: ignore[reportArgumentType, reportAssignmentType]
    return [conv for block in blocks for conv in (block.conv1, block.conv2)]


def package_cam(
    model: ResNet, x_NCHW: Float[Tensor, "n 3 h w"], classes_N: Int[Tensor, " n"]
) -> Float[np.ndarray, "n h w"]:
    """Maps in [0, 1] for one class of each picture, by the grad-cam package.

    Args:
        model: left in evaluation mode, without gradients.
        x_NCHW: what `ResNet.prepare` gives.
        classes_N: the class of each picture that is asked for.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise UserError(f"the grad-cam package cannot be imported ({error}): `pip install grad-cam`") from error
    # The package differentiates by the parameters as well, and keeps their gradients.
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    targets: list[Any] = [ClassifierOutputTarget(int(number)) for number in classes_N]
    # Not as a context, which would print that a class is out of range and go on.
    cam = GradCAM(LogitsOnly(model), target_layers(model))
    try:
        with torch.enable_grad():
            return cam(x_NCHW, targets)
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)


def batched_cam(
    model: ResNet, x_NCHW: Float[Tensor, "n 3 h w"], classes_N: Int[Tensor, " n"]
) -> Float[Tensor, "n h w"]:
    """The maps of `package_cam`, as a tensor on the device; parameters need no gradients."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        y_NCHW = functional.relu(model.norm(model.conv(x_NCHW)))
        for stage in list(model.stages)[:-1]:
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues]
                y_NCHW = block(y_NCHW)
    layers: list[Tensor] = []

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        layers.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in target_layers(model)]
    try:
        with torch.enable_grad():
            y_NCHW = y_NCHW.detach().requires_grad_()
            for block in model.stages[-1]:  # pyright: ignore[reportGeneralTypeIssues]
                y_NCHW = block(y_NCHW)
            logits_NR = model.linear(y_NCHW.mean((2, 3)))
            # Pictures do not meet in evaluation mode, so one pass back serves them all.
            score = logits_NR.gather(1, classes_N[:, None]).sum()
            gradients = torch.autograd.grad(score, layers)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    with torch.no_grad():
        maps = [
            _stretch((gradient.mean((2, 3), keepdim=True) * layer).sum(1).relu())
            for gradient, layer in zip(gradients, layers, strict=True)
        ]
        small_NHW = torch.stack(maps).mean(0)
        large_N1HW = functional.interpolate(small_NHW[:, None], x_NCHW.shape[2:], mode="bilinear")
        return _stretch(large_N1HW[:, 0])


def _stretch(maps_NHW: Tensor) -> Tensor:
    """Each map to [0, 1]; one that is the same everywhere to 0."""
    low = maps_NHW.amin((1, 2), keepdim=True)
    # The package's own guard against a division by zero.
    return (maps_NHW - low) / (1e-7 + (maps_NHW - low).amax((1, 2), keepdim=True))


def class_means(
    model: ResNet, images_NHWC: Tensor, labels_N: Tensor, num_classes: int, batch: int = 256
) -> tuple[Float[Tensor, "r h w"], Int[Tensor, " r"]]:
    """The mean map of every class over the pictures of it that were recognised, zero where none was, on the device, and
    how many pictures each is of."""
    height, width = images_NHWC.shape[1:3]
    sums = torch.zeros(num_classes, height, width, device=images_NHWC.device)
    counts = torch.zeros(num_classes, dtype=torch.long, device=images_NHWC.device)
    for images, labels in zip(images_NHWC.split(batch), labels_N.split(batch), strict=True):
        x_NCHW = model.prepare(images)
        with torch.no_grad():
            right = model.eval().forward(x_NCHW)[0].argmax(1) == labels
        if not right.any():
            continue
        sums.index_add_(0, labels[right], batched_cam(model, x_NCHW[right], labels[right]))
        counts += labels[right].bincount(minlength=num_classes)
    return sums / counts.clamp(min=1)[:, None, None], counts


def overlay(image_HWC: np.ndarray, cam_HW: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """A map as a heat map over its picture: uint8 ``[H, W, 3]``."""
    import matplotlib as mpl

    heat_HWC = mpl.colormaps["jet"](cam_HW)[..., :3] * 255
    return (strength * heat_HWC + (1 - strength) * image_HWC).round().astype(np.uint8)


def beside_photo(photo_HWC: np.ndarray, cam_HW: np.ndarray, fit: Fit) -> np.ndarray:
    """A photograph, and on its right the same under its map, both at the photograph's own size.

    Args:
        photo_HWC: uint8 ``[H, W, 3]``.
        cam_HW: the map in [0, 1] of what the network saw of it.
        fit: how the photograph became the network's square; beyond a middle square it stays as it is.

    Returns:
        uint8 ``[H, 2 W + GAP, 3]``.
    """
    height, width = photo_HWC.shape[:2]
    high, wide = (min(height, width),) * 2 if fit == "crop" else (height, width)
    top, left = (height - high) // 2, (width - wide) // 2
    seen = np.s_[top : top + high, left : left + wide]
    large = Image.fromarray(cam_HW.astype(np.float32)).resize((wide, high), Image.Resampling.BILINEAR)
    under = photo_HWC.copy()
    under[seen] = overlay(photo_HWC[seen], np.asarray(large))
    return np.concatenate([photo_HWC, np.full((height, GAP, 3), 255, np.uint8), under], 1)


def sheet_classes(classes: Sequence[str], asked: Sequence[str]) -> list[int]:
    """The classes of a Grad-CAM sheet: those asked for, else the assignment's seven species, else the first seven.

    Raises:
        UserError: a class is asked for that there is none of.
    """
    index = {folders.class_key(name): number for number, name in enumerate(classes)}
    for name in asked:
        if folders.class_key(name) not in index:
            raise UserError(f"--cam-classes: the pictures have no class '{name}'{nearest(name, classes)}")
    chosen = [index[key] for key in map(folders.class_key, asked or folders.ASSIGNMENT_SPECIES) if key in index]
    if asked or len(chosen) == len(folders.ASSIGNMENT_SPECIES):
        return chosen
    return list(range(min(_SHEET_CLASSES, len(classes))))
