"""Grad-CAM: the package, the batched form beside it, and a slow form written out."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.studies.resnet.common import random_images
from torch import Tensor, nn

from etude.core.errors import UserError
from etude.data.folders import ASSIGNMENT_SPECIES, INDIAN_BIRDS
from etude.nn.fast_norms import make_norm
from etude.studies.resnet.cam import batched_cam, class_means, overlay, package_cam, sheet_classes, target_layers
from etude.studies.resnet.model import ResNet

NORMS = ("bn", "gn", "none", "bin")


def network(norm: str = "bn", n: int = 2, classes: int = 5, side: int = 18) -> ResNet:
    """A network that has seen pictures and leans to no class, so that maps differ."""
    torch.manual_seed(1)
    model = ResNet(n, classes, partial(make_norm, norm))
    images = random_images(16, side, side, 3, seed=3)
    model.set_statistics(images)
    with torch.no_grad():
        # Running statistics of batch norms.
        for _ in range(30):
            model.train()(model.prepare(images))
    return model.eval()


def pictures(model: ResNet, count: int = 6, height: int = 18, width: int = 18, seed: int = 5) -> Tensor:
    images = random_images(count, height, width, 3, seed=seed) // 2
    # One bright place in each picture.
    for i, image in enumerate(images):
        image[i % height, : width // 2] = 255
    return model.prepare(images)


CLASSES = torch.tensor([0, 3, 1, 1, 4, 2])


def slow_cam(model: ResNet, x_NCHW: Tensor, classes: list[int]) -> np.ndarray:
    """Selvaraju et al. 2017, equations 1 and 2, picture by picture and layer by layer."""

    def stretched(values: np.ndarray) -> np.ndarray:
        return (values - values.min()) / (1e-7 + values.max() - values.min())

    maps = []
    for x_CHW, number in zip(x_NCHW, classes, strict=True):
        of_layers = []
        for layer in target_layers(model):
            kept: list[Tensor] = []
            hook = layer.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
            logits, _ = model(x_CHW[None])
            hook.remove()
            (gradient,) = torch.autograd.grad(logits[0, number], kept[0])
            weight_C = gradient[0].mean((1, 2))
            values = (weight_C[:, None, None] * kept[0][0]).sum(0).relu().detach()
            of_layers.append(stretched(values.numpy()))
        small = torch.from_numpy(np.mean(of_layers, axis=0))[None, None]
        large = nn.functional.interpolate(small, x_CHW.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        maps.append(stretched(large.numpy()))
    return np.stack(maps)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_batched_form_is_the_package(norm: str, layout: Any) -> None:
    model = network(norm).to(memory_format=layout)
    x_NCHW = pictures(model).contiguous(memory_format=layout)
    ours, theirs = batched_cam(model, x_NCHW, CLASSES), package_cam(model, x_NCHW, CLASSES)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)
    assert ours.shape == (6, 18, 18)
    assert ours.min() >= 0
    assert ours.max() <= 1
    # Maps that were all alike would agree as well.
    assert ours.std(0).mean() > 0.05
    assert ours.amax((1, 2)).min() > 0.99


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_both_are_the_formula(norm: str) -> None:
    model = network(norm, n=1)
    x_NCHW = pictures(model, height=17, width=26)
    slow = slow_cam(model, x_NCHW, CLASSES.tolist())
    np.testing.assert_allclose(batched_cam(model, x_NCHW, CLASSES).numpy(), slow, atol=1e-4)
    np.testing.assert_allclose(package_cam(model, x_NCHW, CLASSES), slow, atol=1e-4)


def test_the_class_asked_for_decides() -> None:
    model = network()
    x_NCHW = pictures(model)[:1].expand(5, -1, -1, -1)
    maps = batched_cam(model, x_NCHW, torch.arange(5))
    assert all(not torch.allclose(maps[a], maps[b], atol=0.02) for a in range(5) for b in range(a))


@pytest.mark.parametrize(("height", "width"), [(12, 31), (31, 12), (5, 9)])
def test_pictures_that_are_not_square(height: int, width: int) -> None:
    model = network()
    x_NCHW = pictures(model, height=height, width=width)
    ours, theirs = batched_cam(model, x_NCHW, CLASSES), package_cam(model, x_NCHW, CLASSES)
    assert ours.shape == theirs.shape == (6, height, width)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_a_picture_has_one_map_in_any_company() -> None:
    model = network()
    x_NCHW = pictures(model)
    whole = batched_cam(model, x_NCHW, CLASSES)
    alone = torch.cat([batched_cam(model, x_NCHW[i : i + 1], CLASSES[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [1, 3])
def test_the_layers_are_the_last_2n_convolutions(n: int) -> None:
    model = network(n=n)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    layers = target_layers(model)
    assert len(layers) == 2 * n
    assert all(a is b for a, b in zip(layers, convolutions[-2 * n :], strict=True))


def test_a_projection_is_no_layer_of_it() -> None:
    model = ResNet(1, 5, partial(make_norm, "bn"), shortcut="projection").eval()
    assert [type(layer) for layer in target_layers(model)] == [nn.Conv2d] * 2
    assert all(layer.kernel_size == (3, 3) for layer in target_layers(model))
    x_NCHW = pictures(model)
    np.testing.assert_allclose(
        batched_cam(model, x_NCHW, CLASSES).numpy(), package_cam(model, x_NCHW, CLASSES), atol=1e-4
    )


# --- what they leave ---


def hooks(model: nn.Module) -> Iterator[int]:
    for module in model.modules():
        yield len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


@pytest.mark.parametrize("cam", [batched_cam, package_cam])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_behind(cam: Any, frozen: bool, training: bool) -> None:
    model = network()
    expected = package_cam(model, pictures(model), CLASSES)
    model.train(training)
    names = [name for name, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        p.requires_grad_(not frozen or name == names[3])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_NCHW = pictures(model)
    with torch.no_grad():
        found = cam(model, x_NCHW, CLASSES)
        assert not torch.is_grad_enabled()
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4)
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [not frozen or name == names[3] for name in names]
    assert set(hooks(model)) == {0}
    assert not x_NCHW.requires_grad
    assert x_NCHW.grad is None
    # The package leaves evaluation mode on, as its docstring says.
    assert model.training == (training and cam is batched_cam)
    assert all(module.training == model.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_fault_leaves_no_hooks_either() -> None:
    model = network().train()
    for cam in (batched_cam, package_cam):
        with pytest.raises((RuntimeError, IndexError)):
            cam(model, pictures(model)[:1], torch.tensor([99]))
        assert set(hooks(model)) == {0}
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not batched_cam(model.eval(), pictures(model), CLASSES).requires_grad


@pytest.mark.parametrize("cam", [batched_cam, package_cam])
def test_a_compiled_network_is_looked_into_by_its_own_forward(cam: Any) -> None:
    """Hooks see nothing of what the compiler made, and its backward pass runs once only."""
    model = network()
    expected = cam(model, pictures(model), CLASSES)

    def compiled(*_: Any) -> None:
        raise AssertionError("the compiled network was called")

    # Where torch.compile puts it.
    model._compiled_call_impl = compiled
    with pytest.raises(AssertionError, match="compiled network was called"):
        model(pictures(model))
    np.testing.assert_allclose(np.asarray(cam(model, pictures(model), CLASSES)), np.asarray(expected), atol=1e-6)


@pytest.mark.parametrize("cam", [batched_cam, package_cam])
def test_a_map_that_is_the_same_everywhere_is_zero(cam: Any) -> None:
    """A class that no layer speaks for: no value is negative infinity or not a number."""
    model = network()
    nn.init.zeros_(model.linear.weight)
    found = np.asarray(cam(model, pictures(model), CLASSES))
    assert (found == 0).all()
    assert np.isfinite(overlay(np.zeros((18, 18, 3), np.uint8), found[0])).all()


# --- whole sets ---


@pytest.mark.parametrize("batch", [3, 7, 100])
def test_class_means_are_those_of_a_loop(batch: int) -> None:
    model, images = network(), random_images(20, 11, 14, 3)
    with torch.no_grad():
        taken = model(model.prepare(images))[0].argmax(1)
    labels = taken.clone()
    labels[::3] = (labels[::3] + 1) % 5
    # Of this class none is recognised.
    labels[labels == 4] = 0
    sums, counts = np.zeros((5, 11, 14)), np.zeros(5, int)
    for image, label, answer in zip(images, labels, taken, strict=True):
        if label == answer:
            sums[label] += package_cam(model, model.prepare(image[None]), label[None])[0]
            counts[label] += 1
    maps, numbers = class_means(model, images, labels, 5, batch=batch)
    assert numbers.tolist() == counts.tolist()
    assert counts.max() >= 2
    assert counts.min() == 0
    np.testing.assert_allclose(maps.numpy(), sums / np.maximum(counts, 1)[:, None, None], atol=1e-4)


def test_class_means_where_nothing_is_recognised() -> None:
    model, images = network(), random_images(6, 9, 9, 3)
    with torch.no_grad():
        wrong = (model(model.prepare(images))[0].argmax(1) + 1) % 5
    maps, counts = class_means(model, images, wrong, 5, batch=4)
    assert (maps == 0).all()
    assert (counts == 0).all()


# --- overlays ---


def test_an_overlay_is_half_picture_and_half_heat() -> None:
    image = random_images(6, 9, 3).numpy()
    cam = np.linspace(0, 1, 54, dtype=np.float32).reshape(6, 9)
    shown = overlay(image, cam)
    assert (shown.shape, shown.dtype) == ((6, 9, 3), np.uint8)
    # The ends of the scale: dark blue and dark red.
    for place, colour in (((0, 0), (0, 0, 127.5)), ((5, 8), (127.5, 0, 0))):
        np.testing.assert_allclose(shown[place], (image[place] + np.array(colour)) / 2, atol=1)
    np.testing.assert_array_equal(overlay(image, cam, strength=0.0), image)
    heat = overlay(image, cam, strength=1.0)
    np.testing.assert_array_equal(heat, overlay(255 - image, cam, strength=1.0))
    assert len(np.unique(heat.reshape(-1, 3), axis=0)) > 40


def test_the_classes_of_a_sheet() -> None:
    classes = tuple(sorted(INDIAN_BIRDS))
    assert [classes[i] for i in sheet_classes(classes, ())] == list(ASSIGNMENT_SPECIES)
    assert [classes[i] for i in sheet_classes(classes, ("hoopoe", "house crow"))] == ["Hoopoe", "House-Crow"]
    # Where one of the seven is missing, the first seven; where there are fewer, all.
    fewer = tuple(name for name in classes if name != "Cattle-Egret")
    assert sheet_classes(fewer, ()) == list(range(7))
    assert sheet_classes(classes[:3], ()) == [0, 1, 2]


def test_a_class_that_is_not_there_is_named() -> None:
    for asked in (("hoope",), ("Hoopoe", "hoope")):
        with pytest.raises(UserError) as caught:
            sheet_classes(INDIAN_BIRDS, asked)
        text = str(caught.value)
        assert "\n" not in text
        for part in ("no class 'hoope'", "did you mean 'Hoopoe'?", "--cam-classes"):
            assert part in text
    with pytest.raises(UserError, match="no class ''"):
        sheet_classes(("a", "b"), ("",))
