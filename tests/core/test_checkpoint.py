"""Checkpoints: exact, whole or refused, and never a way to run code."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.core import toy
from tests.core.disk import Ballast, largest_file, small_disk
from torch import nn

from etude.core.checkpoint import (
    FORMAT,
    Checkpoints,
    WeightsHeader,
    load_weights,
    read_resume,
    read_weights,
    refuse_other_network,
    save_weights,
)
from etude.core.errors import UserError

HEADER = WeightsHeader("toy", {"seed": 3, "name": "é"}, {"threshold": 0.5})


def network(seed: int = 0, width: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    net(torch.randn(4, 3))
    return net


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Steps 10, 20 and 30 of a network whose seed is the step."""
    made = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30):
        made.save(step, {"net": network(step)}, HEADER, {"loop": {"step": step}, "moment": torch.full((2,), step)})
    return made


def fault_of(do: Callable[[], object]) -> str:
    """What a fault of the user says; empty where there is none."""
    try:
        do()
    except UserError as error:
        return str(error)
    return ""


def test_weights_round_trip(tmp_path: Path):
    """Bit for bit, whatever the memory layout: parameters, buffers and counters."""
    first = network(1)
    first[0].weight.data = first[0].weight.data.t().contiguous().t()
    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    path = tmp_path / "w.safetensors"
    save_weights(path, {"net": first, "conv": conv}, HEADER)
    tensors, header = read_weights(path, study="toy")
    assert header == HEADER
    again, conv_again = network(2), nn.Conv2d(2, 3, 3)
    load_weights({"net": again, "conv": conv_again}, tensors, path)
    assert toy.same(state(again), state(first))
    assert toy.same(state(conv_again), state(conv))
    assert again[1].num_batches_tracked.dtype == torch.int64


def test_half_weights(tmp_path: Path):
    net = network(1)
    save_weights(tmp_path / "w.safetensors", {"net": net}, HEADER, half=True)
    save_weights(tmp_path / "full.safetensors", {"net": net}, HEADER)
    tensors, _ = read_weights(tmp_path / "w.safetensors")
    assert {name: t.dtype for name, t in tensors.items() if t.dtype != torch.float16} == {
        "net.1.num_batches_tracked": torch.int64
    }
    again = network(2)
    load_weights({"net": again}, tensors, tmp_path / "w.safetensors")
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == net.state_dict()[name].dtype, "the network keeps its own precision"
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=2**-10, atol=1e-7)
    assert net[0].weight.dtype == torch.float32, "saving changes nothing"


def test_shared_parameters(tmp_path: Path):
    """Two names of one tensor, as tied embeddings have."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_weights(tmp_path / "w.safetensors", {"net": net, "again": net}, HEADER)
    tensors, _ = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(tensors["net.0.weight"], tensors["again.1.weight"])


def test_a_header_of_any_length(tmp_path: Path):
    """It starts with its header's length, and some lengths look like the first bytes of a pickle or a zip file."""
    path, starts = tmp_path / "w.safetensors", set[bytes]()
    for size in (*range(8, 300, 8), *range(18_300, 18_700, 8)):
        save_weights(path, {"net": network()}, WeightsHeader("toy", {"pad": "x" * size}, {}))
        starts.add(path.read_bytes()[:2])
        assert read_weights(path)[1].config == {"pad": "x" * size}
    assert b"PK" in starts
    assert any(start[:1] == b"\x80" for start in starts)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (nn.Linear(3, 5), r"Missing key.*\"weight\""),
        (nn.Sequential(nn.Linear(3, 5)), "Unexpected key"),
        (network(width=6), r"size mismatch for 0\.weight.*\[5, 3\].*\[6, 3\]"),
    ],
)
def test_weights_of_another_network_are_one_line(tmp_path: Path, other: nn.Module, said: str):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"net": network()}, HEADER)
    with pytest.raises(UserError, match=said) as caught:
        load_weights({"net": other}, read_weights(path)[0], path)
    assert "does not fit the network 'net'" in str(caught.value)
    assert "\n" not in str(caught.value)


class Payload:
    """A pickle of it creates a file when read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_the_payload_works(tmp_path: Path):
    """Else the next tests would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_weights_file_is_not_run(tmp_path: Path, protocol: int, zipped: bool):
    path = tmp_path / "w.safetensors"
    if zipped:
        torch.save({"net.weight": Payload(tmp_path / "owned")}, path, pickle_protocol=max(protocol, 2))
    else:
        path.write_bytes(pickle.dumps({"net.weight": Payload(tmp_path / "owned")}, protocol))
    with pytest.raises(UserError) as caught:
        read_weights(path)
    if protocol:
        assert "is a pickle, which can run code when read" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_resume_file_is_not_run(checkpoints: Checkpoints, zipped: bool):
    """Even where its digest is the one that the manifest names."""
    owned = checkpoints.folder / "owned"
    path = checkpoints.path(30) / "resume.pt"
    resume = {"loop": {"step": 30}, "task": Payload(owned)}
    torch.save(resume, path, _use_new_zipfile_serialization=zipped)
    reseal(checkpoints, 30)
    assert checkpoints.fault(30) is None
    with pytest.raises(UserError, match=r"resume\.pt holds more than tensors and plain values: refused"):
        checkpoints.load_resume(30)
    assert not owned.exists()


def reseal(checkpoints: Checkpoints, step: int, **changes: Any) -> None:
    """Make a manifest that fits the files as they are."""
    from etude.core.files import sha256, write_json

    folder = checkpoints.path(step)
    digests = {name: sha256(folder / name) for name in ("weights.safetensors", "resume.pt")}
    manifest = {"format": FORMAT, "step": step, "sha256": digests} | changes
    write_json(folder / "manifest.json", manifest)


def test_every_truncation_of_weights_is_one_line(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"net": network()}, HEADER)
    data = path.read_bytes()
    for size in [*range(0, 64), *range(64, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match="truncated or not a safetensors file") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_altered_weights_are_read_or_refused_in_one_line(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "w.safetensors"
    if not path.exists():
        save_weights(path, {"net": network()}, HEADER)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    altered = tmp_path / "altered.safetensors"
    altered.write_bytes(bytes(content))
    said = fault_of(lambda: load_weights({"net": network()}, read_weights(altered)[0], altered))
    assert "\n" not in said


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_altered_resume_files_are_read_or_refused_in_one_line(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "resume.pt"
    if not path.exists():
        torch.save({"loop": {"step": 3}, "adam": {0: torch.ones(3), "betas": (0.9, 0.99)}}, path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(1, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    altered = tmp_path / "altered.pt"
    altered.write_bytes(bytes(content))
    assert "\n" not in fault_of(lambda: read_resume(altered))


def write_foreign(path: Path, metadata: dict[str, str] | None) -> None:
    safetensors.torch.save_file({"net.weight": torch.ones(2)}, str(path), metadata=metadata)


def about(**changes: Any) -> dict[str, str]:
    return {"etude": json.dumps({"format": FORMAT, "study": "toy", "config": {}, "extra": {}} | changes)}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "was not written by etude"),
        ({"other": "x"}, "was not written by etude"),
        ({"etude": "{"}, "was not written by etude"),
        ({"etude": "[1]"}, "was not written by etude"),
        ({"etude": '{"format": 1}'}, "was not written by etude"),
        (about(format="x"), "was not written by etude"),
        (about(format=FORMAT + 1), rf"newer etude \(format {FORMAT + 1}, this one reads {FORMAT}\): upgrade etude"),
        (about(study="other"), "is a checkpoint of the study 'other', not of 'toy'"),
    ],
)
def test_a_foreign_header_is_one_line(tmp_path: Path, metadata: dict[str, str] | None, said: str):
    path = tmp_path / "w.safetensors"
    write_foreign(path, metadata)
    with pytest.raises(UserError, match=said) as caught:
        read_weights(path, study="toy")
    assert "\n" not in str(caught.value)


def test_the_study_is_asked_for_only_where_it_matters(tmp_path: Path):
    write_foreign(tmp_path / "w.safetensors", about(study="other"))
    _, header = read_weights(tmp_path / "w.safetensors")
    assert header.study == "other"


def test_no_weights_file_is_one_line(tmp_path: Path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="no weights file at"):
            read_weights(path)


def test_a_checkpoint_round_trip(checkpoints: Checkpoints):
    assert checkpoints.steps() == [10, 20, 30]
    assert checkpoints.newest() == 30
    net = network(0)
    assert checkpoints.load_weights(20, {"net": net}, "toy") == HEADER
    assert toy.same(state(net), state(network(20)))
    assert toy.same(checkpoints.load_resume(20), {"loop": {"step": 20}, "moment": torch.full((2,), 20)})
    assert sorted(p.name for p in checkpoints.path(20).iterdir()) == [
        "manifest.json", "resume.pt", "weights.safetensors"
    ]  # fmt: skip


def test_a_checkpoint_of_another_study_is_refused(checkpoints: Checkpoints):
    with pytest.raises(UserError, match="is a checkpoint of the study 'toy', not of 'other'"):
        checkpoints.load_weights(20, {"net": network()}, "other")


def test_a_checkpoint_is_never_written_twice(checkpoints: Checkpoints):
    before = (checkpoints.path(20) / "weights.safetensors").read_bytes()
    checkpoints.save(20, {"net": network(99)}, HEADER, {})
    assert (checkpoints.path(20) / "weights.safetensors").read_bytes() == before


def test_a_broken_checkpoint_is_replaced(checkpoints: Checkpoints):
    (checkpoints.path(20) / "resume.pt").unlink()
    checkpoints.save(20, {"net": network(99)}, HEADER, {"a": 1})
    assert checkpoints.fault(20) is None
    assert checkpoints.load_resume(20) == {"a": 1}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _rewrite(**changes: Any) -> Any:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "harm", "said"),
    [
        ("weights.safetensors", _cut, r"weights\.safetensors does not match its checksum"),
        ("weights.safetensors", _flip, r"weights\.safetensors does not match its checksum"),
        ("weights.safetensors", Path.unlink, r"weights\.safetensors is missing"),
        ("resume.pt", _cut, r"resume\.pt does not match its checksum"),
        ("resume.pt", _flip, r"resume\.pt does not match its checksum"),
        ("resume.pt", Path.unlink, r"resume\.pt is missing"),
        ("manifest.json", _cut, r"manifest\.json cannot be read as JSON"),
        ("manifest.json", Path.unlink, r"manifest\.json is missing"),
        ("manifest.json", _rewrite(sha256={"weights.safetensors": "0" * 64}), "does not match its checksum"),
        ("manifest.json", _rewrite(sha256=[]), "its manifest is broken"),
        ("manifest.json", _rewrite(sha256={}), "its manifest is broken"),
        ("manifest.json", _rewrite(format=None), "its manifest is broken"),
        ("manifest.json", lambda path: path.write_text("[]"), "its manifest is broken"),
        ("manifest.json", lambda path: path.write_text("{}"), "its manifest is broken"),
    ],
)
def test_a_broken_checkpoint_is_passed_over_with_a_warning(checkpoints: Checkpoints, file: str, harm: Any, said: str):
    harm(checkpoints.path(30) / file)
    with pytest.warns(RuntimeWarning, match=said) as caught:
        assert checkpoints.newest() == 20
    assert [str(w.message) for w in caught] == [f"{checkpoints.path(30)} is not used: {checkpoints.fault(30)}"]


def test_any_byte_of_a_checkpoint(checkpoints: Checkpoints):
    """Every byte of the manifest, and a hundred of each of the others, made another: the one before is used."""
    draw = random.Random(0)
    for name in ("manifest.json", "weights.safetensors", "resume.pt"):
        path = checkpoints.path(30) / name
        whole = path.read_bytes()
        places = range(len(whole)) if name == "manifest.json" else draw.choices(range(len(whole)), k=100)
        for place in places:
            data = bytearray(whole)
            data[place] ^= draw.randint(1, 255)
            if name == "manifest.json" and whole[:place].endswith(b'"format": '):
                data[place] = draw.choice(b"23456789")
            path.write_bytes(data)
            with pytest.warns(RuntimeWarning, match="is not used"):
                assert checkpoints.newest() == 20, (name, place, data[place])
            with pytest.raises(UserError, match=r"is broken: .* put a copy of it back"):
                checkpoints.weights(30)
        path.write_bytes(whole)
    assert checkpoints.newest() == 30


def test_a_newer_checkpoint_is_refused_not_passed_over(checkpoints: Checkpoints):
    """An older one would throw away what the newer etude did."""
    for weights in (about(format=FORMAT + 1)["etude"], "{"):
        # Whether their header is like ours or of another kind.
        write_foreign(checkpoints.path(30) / "weights.safetensors", {"etude": weights})
        reseal(checkpoints, 30, format=FORMAT + 1)
        with pytest.raises(UserError, match=rf"newer etude \(format {FORMAT + 1}, .*\): upgrade etude"):
            checkpoints.newest()
    (checkpoints.path(30) / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="newer etude"):
        checkpoints.newest()


def test_no_checkpoints_at_all(tmp_path: Path):
    none = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert (none.steps(), none.newest(), none.best_step) == ([], None, None)
    none.prune(0)


def test_prune_keeps_the_newest_and_the_best(checkpoints: Checkpoints):
    checkpoints.keep = 1
    checkpoints.mark_best(10, "loss", 0.5)
    checkpoints.prune(30)
    assert checkpoints.steps() == [10, 30]
    assert checkpoints.best_step == 10
    checkpoints.mark_best(30, "loss", 0.4)
    checkpoints.prune(30)
    assert checkpoints.steps() == [30]


def test_what_a_crash_left_is_ignored_and_pruned(checkpoints: Checkpoints):
    left = checkpoints.folder / ".step-00000040.x1y2.tmp"
    shutil.copytree(checkpoints.path(30), left)
    half = checkpoints.folder / ".best.json.x1y2.tmp"
    half.write_text('{"st')
    (checkpoints.folder / "notes.txt").write_text("of the user")
    assert checkpoints.steps() == [10, 20, 30]
    assert checkpoints.newest() == 30
    checkpoints.prune(30)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "notes.txt", "step-00000010", "step-00000020", "step-00000030"
    ]  # fmt: skip


def test_a_checkpoint_is_renamed_into_place_whole(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch):
    """A kill at any call that touches the disk leaves the step absent or whole."""
    seen: list[bool] = []
    replace = os.replace

    def watch(*args: Any) -> None:
        seen.append(checkpoints.path(40).exists())
        replace(*args)

    monkeypatch.setattr(os, "replace", watch)
    checkpoints.save(40, {"net": network(40)}, HEADER, {})
    # Weights, resume file and manifest were each put into a folder of another name.
    assert seen == [False] * 3
    assert checkpoints.fault(40) is None


def test_a_failed_save_leaves_the_others(checkpoints: Checkpoints):
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        checkpoints.save(40, {"net": network(40)}, HEADER, {"no": lambda: None})
    assert checkpoints.steps() == [10, 20, 30]
    assert not list(checkpoints.folder.glob(".*"))
    assert checkpoints.newest() == 30


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        path = Checkpoints(tmp_path / "checkpoints", 2).save(1, {"net": network()}, HEADER, {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o777 & ~mask
    assert all(file.stat().st_mode & 0o777 == 0o666 & ~mask for file in path.iterdir())


def big() -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """About 160 KB of weights and twice that beside them."""
    return {"net": nn.Linear(200, 200)}, {"moments": torch.randn(2, 40_000)}


@pytest.mark.parametrize("size", [10, 5_000, 150_000, 170_000, 300_000])
def test_a_file_beyond_the_limit_leaves_the_earlier_checkpoint(checkpoints: Checkpoints, size: int):
    net, resume = big()
    with largest_file(size), pytest.raises(UserError, match=r"no room to write .*what was there before is kept") as got:
        checkpoints.save(40, net, HEADER, resume)
    assert "\n" not in str(got.value)
    assert_intact(checkpoints)


def assert_intact(checkpoints: Checkpoints) -> None:
    assert checkpoints.steps() == [10, 20, 30]
    assert not list(checkpoints.folder.glob(".*"))
    assert checkpoints.newest() == 30
    net = network(0)
    checkpoints.load_weights(30, {"net": net}, "toy")
    assert toy.same(state(net), state(network(30)))
    assert checkpoints.load_resume(30)["loop"] == {"step": 30}


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, checkpoints: Checkpoints):
    """Wherever it fills up: in the weights, in the resume file, in the manifest."""
    net, resume = big()
    with small_disk(tmp_path / "disk") as disk:
        shutil.copytree(checkpoints.folder, disk / "checkpoints")
        there = Checkpoints(disk / "checkpoints", 2)
        ballast, refused = Ballast(disk), 0
        for free in range(0, 600_000, 16_384):
            ballast.fill(free)
            said = fault_of(lambda: there.save(40, net, HEADER, resume))
            if not said:
                break
            refused += 1
            assert "no room to write" in said
            assert "\n" not in said
            assert_intact(there)
            ballast.remove()
        assert refused > 25
        assert there.newest() == 40
        assert toy.same(there.load_resume(40), resume)


def test_weights_of_another_network_are_refused_though_they_fit():
    def header(**model: object) -> WeightsHeader:
        return WeightsHeader("toy", {"seed": 1, "model": model}, {})

    config = {"seed": 2, "model": {"norm": "ln", "n": 2, "new": 1}}
    said = fault_of(lambda: refuse_other_network(header(norm="gn", n=2), config, Path("w.safetensors")))
    assert said == (
        "w.safetensors was trained with model.norm gn, and config.yaml says ln: put that back, or train a new run"
    )
    # Settings that came with a newer etude, other settings than the network's, and a user's own part in a new place.
    for fine in (header(norm="ln", n=2), header(norm="ln", gone=3), header(norm="old/mine.py:Norm", n=2)):
        refuse_other_network(fine, config, Path("w.safetensors"))
    refuse_other_network(WeightsHeader("toy", {"seed": 1}, {}), config, Path("w.safetensors"))
    refuse_other_network(header(norm="ln"), {"seed": 1}, Path("w.safetensors"))
