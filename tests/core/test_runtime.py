"""Where a run computes: parts of a step, buffers, devices, precision."""

import itertools
from pathlib import Path

import pytest
import torch
from tests.core import toy
from torch import nn

from etude.core import randomness
from etude.core.config import LoopConfig
from etude.core.errors import UserError
from etude.core.runtime import Runtime, resolve_device


def runtime(**loop: object) -> Runtime:
    return Runtime(LoopConfig(max_steps=1, device="cpu", **loop), seed=3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("total", [1, 2, 5])
def test_the_gradient_of_parts_is_that_of_the_whole_batch(total: int):
    torch.manual_seed(0)
    here = runtime()
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    shared = here.prepare(net)
    x_PND, y_PN1 = torch.randn(total, 3, 4).double(), torch.randn(total, 3, 1).double()
    seen: list[int] = []

    def compute(part: int) -> dict[str, torch.Tensor]:
        seen.append(part)
        return {"loss": (shared(x_PND[part]) - y_PN1[part]).square().mean()}

    here.accumulate(compute, total, shared)
    assert seen == list(range(total))
    got = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    (net(x_PND.flatten(0, 1)) - y_PN1.flatten(0, 1)).square().mean().backward()
    want = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(got) == len(want) == 4
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-15)


def test_running_statistics_move_by_the_mean_over_the_parts():
    """By hand: each part starts from the statistics before the step, and the results are averaged."""
    torch.manual_seed(0)
    here = runtime()
    norm = nn.BatchNorm1d(2, momentum=0.25)
    shared = here.prepare(norm)
    x_PND = torch.randn(3, 5, 2) * 2 + 1
    here.accumulate(lambda part: {"loss": shared(x_PND[part]).square().sum()}, 3, shared)
    mean = 0.75 * 0 + 0.25 * x_PND.mean(1).mean(0)
    variance = 0.75 * 1 + 0.25 * x_PND.var(1, unbiased=True).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 1, "a step counts once, however its batch was split"


def test_a_step_of_one_part_moves_buffers_as_ever():
    torch.manual_seed(0)
    here, plain = runtime(), nn.BatchNorm1d(2)
    norm = here.prepare(nn.BatchNorm1d(2))
    for _ in range(3):
        x_ND = torch.randn(5, 2)
        plain(x_ND)
        for _ in here.parts(1, norm):
            norm(x_ND)
    assert toy.same(dict(norm.state_dict()), dict(plain.state_dict()))


def test_three_parts_train_as_one_large_batch(tmp_path: Path):
    """Through the loop: without batch norm and dropout, the accumulated steps equal those of the joined batch."""
    net = {"norm": False, "dropout": 0.0}
    parts_task, parts = toy.build(tmp_path / "parts", toy.config(8, net=net, per_step=3))
    one_task, one = toy.build(tmp_path / "one", toy.config(8, net=net))
    draw = one_task.batch

    def joined(stream: str, step: int, part: int, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
        if stream == "val":
            return draw(stream, step, part, rows)
        batches = [draw(stream, step, p, rows) for p in range(3)]
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    one_task.batch = joined
    parts.train()
    one.train()
    for name, weights in parts_task.net.state_dict().items():
        torch.testing.assert_close(weights, one_task.net.state_dict()[name], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(toy.metrics(tmp_path / "parts"), toy.metrics(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_generators_are_keyed_by_the_run():
    drawn = torch.rand(3, generator=runtime().generator("val", 2, 1))
    assert torch.equal(drawn, torch.rand(3, generator=randomness.generator(3, "val", 2, 1)))


def test_one_process_has_all_the_work():
    here = runtime()
    assert (here.world, here.rank, here.is_main) == (1, 0, True)
    assert here.share(7) == slice(0, 7)
    rows = torch.arange(14).reshape(7, 2)
    assert torch.equal(here.gather(rows[here.share(7)], 7), rows)
    assert here.sum(torch.ones(2)).tolist() == [1, 1]
    here.wait()


@pytest.mark.parametrize(("world", "count"), [(2, 7), (3, 7), (4, 2), (3, 0), (5, 5)])
def test_shares_cover_everything_once(monkeypatch: pytest.MonkeyPatch, world: int, count: int):
    items = list(range(count))
    shares: list[list[int]] = []
    for rank in range(world):
        monkeypatch.setattr(Runtime, "world", property(lambda _: world))
        monkeypatch.setattr(Runtime, "rank", property(lambda _, rank=rank: rank))
        shares.append(items[runtime().share(count)])
    assert list(itertools.chain(*shares)) == items
    assert max(map(len, shares)) <= -(-count // world)


def test_a_batch_that_cannot_be_shared_is_one_line(monkeypatch: pytest.MonkeyPatch):
    here = runtime()
    monkeypatch.setattr(Runtime, "world", property(lambda _: 4))
    with pytest.raises(UserError, match=r"a batch of 3 part\(s\) cannot be shared by 4 processes: make it larger"):
        next(here.parts(3))


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"no {device} device here: use --loop.device auto or cpu"):
            resolve_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cpu") == "cpu"


def test_half_precision_needs_an_accelerator():
    with pytest.raises(UserError, match="fp16 needs an accelerator"):
        runtime(precision="fp16")


def test_a_second_runtime_has_a_precision_of_its_own():
    for precision, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        here = runtime(precision=precision)
        seen: list[torch.dtype] = []
        net = nn.Sequential(nn.Linear(2, 2), Watch(seen))
        here.prepare(net)(torch.ones(1, 2))
        assert seen == [kind]
        assert all(p.dtype == torch.float32 for p in net.parameters()), "weights stay whole"


class Watch(nn.Module):
    """Notes the precision that reaches it."""

    def __init__(self, seen: list[torch.dtype]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.dtype)
        return x


def test_a_cpu_keeps_no_state_of_its_own():
    assert runtime().state() == {}
    runtime().load_state({})
