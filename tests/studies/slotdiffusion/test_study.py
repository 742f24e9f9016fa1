"""Settings that make no sense, each told in one line; presets; rates by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
from tests.experiments import Finished
from tests.studies.slotdiffusion.common import one_line, settings

from etude.cli import main
from etude.core.config import override
from etude.core.errors import UserError
from etude.studies.slotdiffusion.study import STUDY, OptimConfig, smoke, vae_smoke


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line says of a run that it refuses."""
    assert main(["run", "slotdiffusion", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said, said
    assert "Traceback" not in said
    return said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


FAULTS: list[tuple[str, str]] = [
    # The chain of the smoke preset has 50 steps.
    ("--sample.steps 0", "sample.steps must be from 1 to 50, as many as the chain has, not 0"),
    ("--sample.steps 51", "sample.steps must be from 1 to 50, as many as the chain has, not 51"),
    ("--sample.ancestral 51", "sample.ancestral must be from 0 to 50, as many as the chain has, not 51"),
    ("--sample.ancestral -1", "sample.ancestral must be from 0 to 50"),
    ("--chain.steps 4", "sample.steps must be from 1 to 4, as many as the chain has, not 5"),
    ("--sample.guidance 2", "sample.guidance must be 1 where optim.drop is 0, not 2.0"),
    ("--sample.guidance -1", "sample.guidance must be 0 or more, not -1.0"),
    ("--sample.guidance nan", "sample.guidance must be 0 or more, not nan"),
    ("--sample.sampler ddmi", "no sampler 'ddmi'; did you mean 'ddim'?"),
    ("--sample.sampler mine.py:euler", "no file mine.py for the sampler"),
    # Two halvings of the autoencoder, and of the U-Net one, or two.
    ("--model.size 20", "model.size must be a multiple of 8 up to 512, not 20"),
    (
        "--model.multipliers 1 2 3 --model.size 24",
        "model.size must be a multiple of 16, which autoencoder and U-Net halve it to, not 24",
    ),
    (
        "--vae.multipliers 1 1 1 1 --model.size 24",
        "model.size must be a multiple of 16, which autoencoder and U-Net halve it to, not 24",
    ),
    ("--phase vae --vae.multipliers 1 1 1 1 1 --model.size 24", "model.size must be a multiple of 16, not 24"),
    ("--phase both", "--phase"),
    ("--model.num-slots 1", "model.num_slots must be at least 2 (one slot has nothing to share), not 1"),
    ("--model.slot-size 0", "model.slot_size must be at least 1"),
    ("--model.width 0", "model.width must be at least 1, not 0"),
    ("--model.width 5", "a U-Net 5 wide: the code of the time wants an even width of 4 or more"),
    ("--model.heads 0", "model.heads must be at least 1, not 0"),
    ("--model.heads 3", "3 heads cannot share 32 channels: give heads that divide them"),
    ("--model.depth 0", "model.depth must be at least 1, not 0"),
    ("--model.dropout 1", "model.dropout must be 0 or more and below 1, not 1.0"),
    ("--model.dropout -0.1", "model.dropout must be 0 or more and below 1, not -0.1"),
    ("--model.multipliers 1 0", "model.multipliers must be one number or more, all at least 1, not (1, 0)"),
    ("--model.encoder resnet17", "no encoder 'resnet17'; did you mean 'resnet18'?"),
    ("--vae.width 0", "vae.width must be at least 1, not 0"),
    ("--vae.channels 0", "vae.channels must be at least 1, not 0"),
    ("--vae.blocks 0", "vae.blocks must be at least 1, not 0"),
    ("--vae.codes 1", "vae.codes must be at least 2, not 1"),
    ("--vae.kl-weight -1", "vae.kl_weight must be 0 or more, not -1.0"),
    ("--vae.multipliers 0 1", "vae.multipliers must be one number or more, all at least 1, not (0, 1)"),
    ("--vae.kind gan", "--vae.kind"),
    ("--vae.weights nowhere.pth", "no autoencoder at nowhere.pth"),
    ("--vae.weights=", "no autoencoder: train one"),
    ("--chain.steps 0", "chain.steps must be at least 1, not 0"),
    ("--chain.first 0", "chain.first and chain.last must be rising within 0 and 1, not 0.0 and 0.3"),
    ("--chain.last 1", "chain.first and chain.last must be rising within 0 and 1, not 0.01 and 1.0"),
    ("--chain.first 0.1 --chain.last 0.05", "chain.first and chain.last must be rising within 0 and 1, not 0.1"),
    ("--chain.spacing cosine", "--chain.spacing"),
    ("--optim.lr 0", "optim.lr must be above 0"),
    ("--optim.encoder-lr 0", "optim.encoder_lr must be above 0"),
    ("--optim.ema 1", "optim.ema must be 0 or more and below 1, not 1.0"),
    ("--optim.drop 1", "optim.drop must be 0 or more and below 1, not 1.0"),
    ("--optim.warmup -1", "optim.warmup must be 0 or more"),
    ("--optim.clip -1", "optim.clip must be 0 or more"),
    ("--optim.noise-steps -1", "optim.noise_steps must be 0 or more"),
    ("--metric.watched -1", "metric.watched must be 0 or more"),
    ("--metric.reconstructed -1", "metric.reconstructed must be 0 or more"),
    ("--metric.composed -1", "metric.composed must be 0 or more"),
    ("--metric.library -1", "metric.library must be 0 or more"),
    ("--metric.inception nowhere.pt", "no file nowhere.pt with the Inception weights"),
    ("--data.most 9", "data.most must be 0, or at least 10, not 9"),
    ("--data.source folder", "data.folder must be a path (--data.folder), not empty"),
    ("--batch.parts 3", "batch.size must be a multiple of batch.parts (3), not 8"),
    ("--batch.size 100", "a batch of 100 is larger than the 96 training scenes: give a smaller --batch.size"),
    ("--table tabel", "--table"),
]


@pytest.mark.parametrize(("words", "says"), FAULTS)
def test_a_fault_is_one_line(words: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "smoke", *words.split())
    assert list(here.glob("runs/*/*")) == [], "and the name is free again"


@pytest.mark.parametrize("name", ["model.multipliers", "vae.multipliers"])
def test_no_level_at_all(name: str) -> None:
    with pytest.raises(UserError) as caught:
        override(smoke(), {name: ()})
    one_line(caught, f"{name} must be one number or more")


def test_what_is_just_allowed() -> None:
    for changes in (
        {"sample__steps": 20, "sample__ancestral": 20},
        {"sample__steps": 1, "sample__ancestral": 0},
        {"sample__guidance": 3.0, "optim__drop": 0.1},
        {"model__num_slots": 2},
        # The U-Net is of no account while the autoencoder is trained: 24 px are 12 places, and three halvings.
        {"phase": "vae", "model__size": 24, "model__multipliers": (1, 1, 1, 1)},
        {"chain__steps": 1, "sample__steps": 1, "sample__ancestral": 0},
    ):
        settings(**changes)


def test_the_stride_of_an_autoencoder() -> None:
    found = [settings(vae__multipliers=levels).vae.stride for levels in ((1,), (1, 2), (2, 1, 3))]
    assert found == [1, 2, 4]


# --- presets ---


@pytest.mark.parametrize("name", sorted(STUDY.presets))
def test_every_preset_can_be(name: str) -> None:
    config: Any = STUDY.preset(name).build()
    assert config.phase == ("vae" if name.startswith("vae") else "diffusion")
    # A preset that draws names no weights: they are the user's to train.
    assert config.vae.weights == ("untrained" if name == "smoke" else "")
    for experiment in STUDY.experiments.values():
        jobs = experiment.jobs(name)
        assert len({job.name for job in jobs}) == len(jobs)


@pytest.mark.parametrize(
    ("first", "changes", "second"),
    [
        ("vae-smoke", {}, "smoke"),
        ("vae-laptop", {}, "laptop"),
        ("vae", {}, "course"),
        # As the preset's docstring and the README say.
        ("vae", {"vae.kind": "vq", "vae.codes": 4096}, "paper"),
    ],
)
def test_the_second_phase_takes_what_the_first_makes(first: str, changes: dict[str, Any], second: str) -> None:
    one, other = override(STUDY.preset(first).build(), changes), STUDY.preset(second).build()
    sizes = ("kind", "width", "multipliers", "channels", "blocks", "codes")
    assert all(getattr(one.vae, name) == getattr(other.vae, name) for name in sizes)  # pyright: ignore
    assert one.model.size == other.model.size  # pyright: ignore[reportAttributeAccessIssue]


VAE = Finished(Path("runs/vae"), {})


@pytest.mark.parametrize("preset", ["paper", "best", "laptop", "smoke"])
def test_the_runs_of_an_experiment_fit_each_other(preset: str) -> None:
    """The autoencoder that is trained first is of the sizes that the others take."""
    jobs = STUDY.experiment("init").jobs(preset)
    configs: dict[str, Any] = {
        job.name: override(STUDY.preset(preset).build(), dict(job.settings([VAE]))) for job in jobs
    }
    assert [job.name for job in jobs][:2] == ["vae", "gaussian"]
    assert configs["vae"].phase == "vae"
    for job in jobs[1:]:
        assert job.after == ("vae",)
        assert configs[job.name].phase == "diffusion"
        assert configs[job.name].vae.weights == str(VAE.path)
        for name in ("kind", "width", "multipliers", "channels", "blocks"):
            assert getattr(configs[job.name].vae, name) == getattr(configs["vae"].vae, name)


def test_the_two_smoke_presets_differ_in_their_phase_alone() -> None:
    same = override(vae_smoke(), {"phase": "diffusion", "vae.weights": "untrained"})
    assert same == smoke()


# --- rates ---


def test_rates_by_hand() -> None:
    plain = OptimConfig(warmup=4)
    assert [plain.factor(step, 10) for step in (0, 1, 3, 4, 9)] == pytest.approx([0.25, 0.5, 1, 1, 1])
    cosine = OptimConfig(schedule="cosine")
    assert [cosine.factor(step, 100) for step in (0, 25, 50, 100)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0], abs=1e-12
    )
    both = OptimConfig(schedule="cosine", warmup=10)
    assert both.factor(4, 100) == pytest.approx(0.5 * (1 + math.cos(0.04 * math.pi)) / 2)
    assert both.factor(50, 100) == pytest.approx(0.5)
    rates = [both.factor(step, 100) for step in range(100)]
    assert min(rates) > 0
    assert max(rates) < 1
