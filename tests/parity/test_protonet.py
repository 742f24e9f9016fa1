"""The network, distances, loss and scores of Prototypical Networks beside slow twins in NumPy and PyTorch."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise
from torch.nn import functional

from etude.data.omniglot import generated
from etude.studies.protonet.episodes import Accuracy, draw_classes, draw_drawings, score_pool
from etude.studies.protonet.model import DISTANCES, Conv4, cosine, episode_loss, prototypes, squared_euclidean
from etude.studies.protonet.task import embed, to_input


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(width: int = 6, in_channels: int = 1) -> Conv4:
    """A network in float64 whose every parameter and running statistic differs from its default."""
    torch.manual_seed(1)
    net = Conv4(in_channels, width).double()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    return net


# --- the network ---


def conv4_in_numpy(
    net: Conv4, x: np.ndarray, *, training: bool, momentum: float = 0.1, eps: float = 1e-5
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Section 3.1, in the paper's order: convolution, normalisation, ReLU, pooling; one number at a time."""
    means, variances = [], []
    for block in net.blocks:
        weight, bias = (p.detach().numpy() for p in (block.conv.weight, block.conv.bias))
        gamma, beta = (p.detach().numpy() for p in (block.norm.weight, block.norm.bias))
        n, _, h, w = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = np.zeros((n, len(weight), h, w))
        for row in range(h):
            for column in range(w):
                window = padded[:, :, row : row + 3, column : column + 3]
                y[:, :, row, column] = np.tensordot(window, weight, ((1, 2, 3), (1, 2, 3))) + bias
        mean, variance = block.norm.running_mean.numpy(), block.norm.running_var.numpy()
        if training:
            count = n * h * w
            of_batch = y.mean((0, 2, 3))
            squares = ((y - of_batch[:, None, None]) ** 2).sum((0, 2, 3))
            means.append((1 - momentum) * mean + momentum * of_batch)
            variances.append((1 - momentum) * variance + momentum * squares / (count - 1))
            mean, variance = of_batch, squares / count
        scale = (gamma / np.sqrt(variance + eps))[:, None, None]
        y = np.maximum((y - mean[:, None, None]) * scale + beta[:, None, None], 0)
        y = y[:, :, : h // 2 * 2, : w // 2 * 2]
        x = y.reshape(n, len(weight), h // 2, 2, w // 2, 2).max((3, 5))
    return x.reshape(len(x), -1), means, variances


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 28])
def test_forward_in_evaluation(size: int, channels: int) -> None:
    net = network(in_channels=channels).eval()
    x = double(3, channels, size, size)
    z, named = net(x)
    expected, _, _ = conv4_in_numpy(net, x.numpy(), training=False)
    np.testing.assert_allclose(z.detach(), expected, rtol=1e-9, atol=1e-12)
    assert [tuple(value.shape[2:]) for value in named.values()] == [(size // 2**k,) * 2 for k in (1, 2, 3, 4)]
    assert torch.equal(named["block4"].flatten(1), z)


def test_forward_and_running_statistics_in_training() -> None:
    net = network()
    x = double(4, 1, 20, 20)
    expected, means, variances = conv4_in_numpy(net, x.numpy(), training=True)
    z, _ = net(x)
    np.testing.assert_allclose(z.detach(), expected, rtol=1e-9, atol=1e-12)
    for block, mean, variance in zip(net.blocks, means, variances, strict=True):
        np.testing.assert_allclose(block.norm.running_mean, mean, rtol=1e-10)
        np.testing.assert_allclose(block.norm.running_var, variance, rtol=1e-10)
        assert block.norm.running_mean.abs().max() > 0.01


def test_gradients_in_training() -> None:
    net = network()
    x = double(4, 1, 20, 20).requires_grad_()
    cotangent = double(4, 6, seed=2)
    (net(x)[0] * cotangent).sum().backward()
    got = [x.grad, *(p.grad for p in net.parameters())]

    # The paper's order of ReLU and pooling, and the normalisation written out.
    y = x.detach().clone().requires_grad_()
    copies = [p.detach().clone().requires_grad_() for p in net.parameters()]
    h = y
    for k in range(4):
        weight, bias, gamma, beta = copies[4 * k : 4 * k + 4]
        h = functional.conv2d(h, weight, bias, padding=1)
        mean = h.mean((0, 2, 3), keepdim=True)
        variance = ((h - mean) ** 2).mean((0, 2, 3), keepdim=True)
        h = (h - mean) / (variance + 1e-5).sqrt() * gamma[:, None, None] + beta[:, None, None]
        h = functional.max_pool2d(h.clamp_min(0), 2)
    (h.flatten(1) * cotangent).sum().backward()
    expected = [y.grad, *(p.grad for p in copies)]
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-11)
    assert all(grad.abs().max() > 0 for grad in got[1::4])


def test_parameters_are_those_of_the_paper() -> None:
    def count(net: Conv4) -> int:
        return sum(p.numel() for p in net.parameters())

    block = 64 * 64 * 9 + 64 + 2 * 64
    assert count(Conv4()) == (64 * 9 + 64 + 2 * 64) + 3 * block == 111_936
    assert count(Conv4(in_channels=3)) == 113_088
    assert Conv4()(torch.zeros(2, 1, 28, 28))[0].shape == (2, 64)
    assert Conv4(3)(torch.zeros(2, 3, 84, 84))[0].shape == (2, 1600)


def test_initial_weights_have_the_published_spread() -> None:
    # PyTorch's own: uniform within 1 / sqrt(fan in), so a spread of 1 / sqrt(3 fan in); the norms start as identity.
    torch.manual_seed(0)
    for number, block in enumerate(Conv4().blocks):
        bound = 1 / math.sqrt(9 * (1 if number == 0 else 64))
        weight = block.conv.weight.detach()
        assert weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06 if number == 0 else 0.01)
        assert weight.mean().item() == pytest.approx(0, abs=0.05 * bound)
        assert block.conv.bias.abs().max().item() <= bound
        assert (block.norm.weight == 1).all()
        assert (block.norm.bias == 0).all()
        assert (block.norm.eps, block.norm.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("size", [(15, 28), (28, 15), (8, 8)])
def test_pictures_that_vanish_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="use 16x16 or more"):
        Conv4()(torch.zeros(1, 1, *size))


# --- distances ---


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_squared_euclidean(batch: tuple[int, ...]) -> None:
    query, proto = double(*batch, 7, 5), double(*batch, 4, 5, seed=1)
    got = squared_euclidean(query, proto)
    torch.testing.assert_close(got, torch.cdist(query, proto) ** 2, rtol=1e-10, atol=1e-10)
    loops = np.zeros(got.shape)
    for place in np.ndindex(*got.shape):
        *lead, q, n = place
        loops[place] = sum((query[(*lead, q)] - proto[(*lead, n)]).numpy() ** 2)
    np.testing.assert_allclose(got, loops, rtol=1e-10)


def test_squared_euclidean_of_equal_points_is_not_negative() -> None:
    z = double(200, 64).float() * 30
    distances = squared_euclidean(z, z)
    assert (distances >= 0).all()
    # Relative to the squares that cancel.
    assert (distances.diagonal() <= 1e-6 * z.square().sum(-1)).all()


@pytest.mark.parametrize("batch", [(), (3,)])
def test_cosine(batch: tuple[int, ...]) -> None:
    query, proto = double(*batch, 7, 5), double(*batch, 4, 5, seed=1)
    got = cosine(query, proto).reshape(-1, 7, 4)
    for one, q, n in zip(got, query.reshape(-1, 7, 5), proto.reshape(-1, 4, 5), strict=True):
        np.testing.assert_allclose(one, pairwise.cosine_distances(q, n), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cosine(query * 9, proto * 0.1), cosine(query, proto))


def test_cosine_of_nothing_is_no_number_that_is_not_one() -> None:
    distances = cosine(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    assert torch.equal(distances, torch.ones(1, 2))


def test_prototypes_are_means() -> None:
    support = double(2, 3, 4, 5)
    np.testing.assert_allclose(prototypes(support), np.mean(support.numpy(), axis=2), rtol=1e-12)
    assert torch.equal(prototypes(support[:, :, :1]), support[:, :, 0])


# --- the loss ---


@pytest.mark.parametrize("name", sorted(DISTANCES))
@pytest.mark.parametrize("temperature", [1.0, 0.05, 30.0])
@pytest.mark.parametrize(("way", "shot", "query"), [(5, 1, 3), (4, 5, 2), (2, 3, 1)])
def test_loss_and_accuracy(name: str, temperature: float, way: int, shot: int, query: int) -> None:
    z_support, z_query = double(way, shot, 6), double(way, query, 6, seed=1) + 0.3 * double(way, 1, 6)
    loss, accuracy = episode_loss(z_support, z_query, DISTANCES[name], temperature)
    total, right = 0.0, 0
    for n in range(way):
        for q in range(query):
            z, logits = z_query[n, q].numpy(), []
            for c in range(way):
                proto = z_support[c].numpy().mean(0)
                if name == "euclidean":
                    distance = np.sum((z - proto) ** 2)
                else:
                    distance = 1 - z @ proto / np.linalg.norm(z) / np.linalg.norm(proto)
                logits.append(-distance / temperature)
            total -= logits[n] - np.logaddexp.reduce(logits)
            right += int(np.argmax(logits) == n)
    assert loss.item() == pytest.approx(total / (way * query), rel=1e-9)
    assert accuracy.item() == pytest.approx(right / (way * query))


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_gradient_of_the_loss(name: str) -> None:
    support, query = double(3, 2, 4).requires_grad_(), double(3, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, q: episode_loss(s, q, DISTANCES[name], 0.7)[0], (support, query))


def test_the_loss_of_equal_distances_is_the_logarithm_of_the_ways() -> None:
    loss, _ = episode_loss(torch.zeros(7, 2, 3), torch.zeros(7, 4, 3), squared_euclidean)
    assert loss.item() == pytest.approx(math.log(7))


# --- scores ---


def slow_scores(
    net: Conv4, way: int, shot: int, query: int, draws: list[tuple[torch.Tensor, torch.Tensor]], cos: bool
) -> tuple[list[float], list[float]]:
    """Accuracy and loss of each episode, every one embedded by itself, every query by itself."""
    pool = generated("val", num_classes=6)
    scores, losses = [], []
    for classes_EN, drawings_ENK in draws:
        for classes, drawings in zip(classes_EN, drawings_ENK, strict=True):
            with torch.no_grad():
                z = net(to_input(pool.images_CNHW[classes[:, None], drawings].flatten(0, 1)))[0].numpy()
            z = z.reshape(way, shot + query, -1).astype(np.float64)
            right, surprise = 0, 0.0
            for n in range(way):
                for q in range(query):
                    kind = pairwise.cosine_distances if cos else pairwise.euclidean_distances
                    [away] = kind(z[n, shot + q][None], z[:, :shot].mean(1))
                    right += int(np.argmin(away) == n)
                    far = away if cos else away**2
                    surprise -= math.log(math.exp(-far[n]) / sum(math.exp(-other) for other in far))
            scores.append(100 * right / (way * query))
            losses.append(surprise / (way * query))
    return scores, losses


@pytest.mark.parametrize("name", sorted(DISTANCES))
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(("way", "shot", "query"), [(3, 1, 4), (2, 5, 15)])
def test_scores_of_a_pool_embedded_once(name: str, within: bool, way: int, shot: int, query: int) -> None:
    torch.manual_seed(3)
    net = Conv4(width=8).eval()
    pool, num_episodes = generated("val", num_classes=6), 12
    z_CPD = embed(net, pool.images_CNHW.flatten(0, 1)).unflatten(0, (-1, 20))

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    sizes = {"way": way, "shot": shot, "query": query, "num_episodes": num_episodes}
    got = score_pool(z_CPD, pool.groups_C, DISTANCES[name], draw(), **sizes, within=within)
    generator = draw()
    classes = draw_classes(num_episodes, way, pool.groups_C, within, generator)
    drawings = draw_drawings((num_episodes, way), 20, shot + query, generator)
    scores, losses = slow_scores(net, way, shot, query, [(classes, drawings)], name == "cosine")
    assert got.num_episodes == num_episodes
    assert got.mean == pytest.approx(np.mean(scores), abs=1e-4)
    assert got.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert got.half_width == pytest.approx(1.96 * np.std(scores, ddof=1) / math.sqrt(num_episodes), abs=1e-4)
    assert got.half_width > 0
    assert 100 / way < got.mean < 100


def test_nineteen_of_twenty_intervals_hold_the_long_run_mean() -> None:
    noise = torch.Generator().manual_seed(0)
    z_CPD = torch.randn(12, 1, 3, generator=noise) + torch.randn(12, 20, 3, generator=noise)
    groups_C = torch.zeros(12, dtype=torch.long)

    def score(num_episodes: int, seed: int) -> Accuracy:
        draw = torch.Generator().manual_seed(seed)
        sizes = {"way": 4, "shot": 2, "query": 3, "num_episodes": num_episodes}
        return score_pool(z_CPD, groups_C, squared_euclidean, draw, **sizes)

    long_run = score(40_000, 0)
    assert long_run.half_width < 0.25
    held = [abs((short := score(100, seed)).mean - long_run.mean) <= short.half_width for seed in range(1, 301)]
    assert 0.91 < np.mean(held) < 0.98


def test_many_episodes_are_scored_in_parts() -> None:
    # 400 x 20 x 20 x 1,024 numbers do not fit one part; each part draws anew.
    torch.manual_seed(0)
    centre = torch.randn(30, 1, 1024)
    z_CPD = centre + 0.01 * torch.randn(30, 20, 1024)
    groups_C = torch.zeros(30, dtype=torch.long)
    draw = torch.Generator().manual_seed(0)
    score = score_pool(z_CPD, groups_C, squared_euclidean, draw, way=20, shot=5, query=15, num_episodes=90)
    assert score.num_episodes == 90
    assert (score.mean, score.half_width) == (100, 0)


def test_one_episode_has_no_interval() -> None:
    z_CPD = torch.randn(5, 20, 4, generator=torch.Generator().manual_seed(0))
    groups_C = torch.zeros(5, dtype=torch.long)
    score = score_pool(
        z_CPD, groups_C, cosine, torch.Generator().manual_seed(0), way=5, shot=1, query=1, num_episodes=1
    )
    assert (score.half_width, score.num_episodes) == (0, 1)
    assert score.mean == pytest.approx(20 * round(score.mean / 20), abs=1e-4)


# --- embedding ---


def test_embedding_does_not_depend_on_the_batch_and_leaves_the_network_as_it_was() -> None:
    net = network().float()
    images = generated("test", num_classes=3).images_CNHW.flatten(0, 1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for training in (True, False):
        net.train(training)
        whole, parts = embed(net, images), embed(net, images, batch=7)
        torch.testing.assert_close(whole, parts)
        assert net.training == training
        assert not whole.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.eval()
    torch.testing.assert_close(whole[:5], net(images[:5, None].float() / 255)[0].detach())


def test_pictures_are_scaled_to_one_and_kept() -> None:
    images = torch.tensor([[[0, 51], [255, 102]]], dtype=torch.uint8)
    x = to_input(images)
    torch.testing.assert_close(x, torch.tensor([[[[0.0, 0.2], [1.0, 0.4]]]]))
    assert images.tolist() == [[[0, 51], [255, 102]]]
