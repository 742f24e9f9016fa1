"""Word problems to programs: presets and experiments."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from etude.core.config import BatchConfig, LoopConfig, StudyConfig, differences, require
from etude.core.study import Experiment, Job, Preset, Study


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    encoder: str = "lstm"
    """lstm: a bidirectional LSTM over words; bert: model.bert; or path/to/file.py:Name of a module that is made with
    the number of words and maps a batch to (states [N, T, D], summary [N, D]), its attribute `width` being D."""
    bert: str = "bert-base-cased"
    """A BERT-like model: a name of the hub, or a folder."""
    tuned: bool = False
    """The BERT's weights learn, too."""
    embedding: int = 100
    """Numbers of a word's and a token's vector."""
    hidden: int = 128
    """State of the encoder in each direction, and of the decoder."""
    layers: int = 1
    """The number of layers of the encoder, and of the decoder."""
    dropout: float = 0.2
    """The share of numbers left out of vectors, between layers and before the logits."""
    attention: bool = True
    """The decoder sees the encoder's states, not only their summary."""
    scaled: bool = False
    """The attention's scores are divided by the root of `hidden`."""
    copies: bool = False
    """The logit of a number is also read off its place in the problem."""
    reads: int = 0
    """The programs that the nearest training problems vote for which the decoder reads and copies from."""
    marks_numbers: bool = True
    """The encoder knows which number of the problem a word is."""

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "layers"):
            require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
        require(0 <= self.reads <= 10, "model.reads", "between 0 and 10", self.reads)
        require(self.attention or not self.reads, "model.reads", "0 without model.attention", self.reads)
        require(0 <= self.dropout < 1, "model.dropout", "0 or more and below 1", self.dropout)
        bert = self.encoder == "bert"
        require(bert or not self.tuned, "model.encoder", "bert where model.tuned is set", self.encoder)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: Literal["mathqa", "templates", "folder", "sample"] = "mathqa"
    """mathqa: the course's split of it; templates: the same problems, divided so that no two splits share a template;
    folder: train.json, dev.json and test.json of yours in the course's form; sample: 200 problems that come with
    etude."""
    folder: str = ""
    """The folder of the source `folder`."""
    least: int = 2
    """Words that occur less often in training are unknown."""
    least_number: int = 2
    """Numbers that occur less often in training are known as numbers only."""
    glove: bool = True
    """Start the words' vectors from GloVe 6B (model.embedding numbers: 50, 100, 200 or 300)."""

    def __post_init__(self) -> None:
        for name in ("least", "least_number"):
            require(getattr(self, name) >= 1, f"data.{name}", "at least 1", getattr(self, name))
        require(bool(self.folder) or self.source != "folder", "data.folder", "a path (--data.folder)", "empty")
        folder = self.source == "folder"
        require(folder or not self.folder, "data.source", "folder where data.folder is set", self.source)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float = 1e-3
    """Adam's learning rate at the start."""
    bert_lr: float = 5e-5
    """The learning rate of a BERT's weights (model.tuned)."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """linear and cosine: down to zero."""
    warmup: int = 0
    """Steps over which the rate rises from zero."""
    weight_decay: float = 0.0
    """Decoupled (AdamW)."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: none."""
    smoothing: float = 0.0
    """Label smoothing."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", "above 0", self.lr)
        require(self.bert_lr > 0, "optim.bert_lr", "above 0", self.bert_lr)
        for name in ("warmup", "weight_decay", "clip"):
            require(getattr(self, name) >= 0, f"optim.{name}", "0 or more", getattr(self, name))
        require(0 <= self.smoothing < 1, "optim.smoothing", "0 or more and below 1", self.smoothing)

    def rate(self, step: int, max_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        done = step / max_steps
        shape = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]
        return self.lr * shape * min(1.0, (step + 1) / self.warmup if self.warmup else 1.0)


@dataclass(frozen=True, kw_only=True)
class Batch(BatchConfig):
    size: int = 64
    """Problems of one optimiser step, over all processes."""
    evaluation: int = 256
    """Problems at a time where nothing is learned."""


MAX_BEAM = 100
"""Memory grows with the beam, and beyond twenty nothing is gained."""


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    width: int = 10
    """Hypotheses of a problem in the final test; validation during training uses one."""
    alpha: float = 1.0
    """Exponent of the length in the score."""
    rule: Literal["standard", "nested"] = "nested"
    """The rule by which extensions are kept; see beam.py."""
    grammar: bool = False
    """Write only programs that are well formed and use numbers that the problem has."""
    executes: bool = False
    """Answer with the best hypothesis that has a value, not the best of all."""

    def __post_init__(self) -> None:
        require(1 <= self.width <= MAX_BEAM, "beam.width", f"between 1 and {MAX_BEAM}", self.width)
        require(self.alpha >= 0, "beam.alpha", "0 or more", self.alpha)


@dataclass(frozen=True, kw_only=True)
class RerankConfig:
    neighbours: int = 0
    """The nearest training problems whose programs are judged together with those of the beam, by a classifier that is
    fitted on dev; 0: the beam's order stands."""

    def __post_init__(self) -> None:
        require(0 <= self.neighbours <= 200, "rerank.neighbours", "between 0 and 200", self.neighbours)


_TABLES = ("run", "architectures", "teacher-forcing", "beam")


@dataclass(frozen=True, kw_only=True)
class Text2MathConfig(StudyConfig):
    system: Literal["network", "retrieval"] = "network"
    """network: an encoder and a decoder; retrieval: the vote of the nearest training problems, whose two weights are
    learned. It has no other settings than data, optim, loop, batch.size and seed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """The problems."""
    batch: Batch = field(default_factory=Batch)
    """The number of problems at a time."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    beam: BeamConfig = field(default_factory=BeamConfig)
    """The search for programs."""
    rerank: RerankConfig = field(default_factory=RerankConfig)
    """The choice among the programs of the beam and of neighbours."""
    teacher_forcing: float = 0.6
    """The share of training steps whose input is the right token before, not the network's own."""
    start: str = ""
    """A run folder: training starts from its best weights, where both networks have them."""
    table: str = "run"
    """The published tables that the run's numbers belong to, joined by +: architectures, teacher-forcing, beam; run:
    none. With beam, the test is made with beams of 1, 10 and 20, and with each option of the search."""

    def __post_init__(self) -> None:
        require(0 <= self.teacher_forcing <= 1, "teacher_forcing", "between 0 and 1", self.teacher_forcing)
        for name in self.table.split("+"):
            require(name in _TABLES, "table", f"of {', '.join(_TABLES)}, joined by +", f"'{self.table}'")


_PROBLEMS = 19_791
"""The size of the training split."""


def _loop(epochs: int, size: int) -> LoopConfig:
    epoch = -(-_PROBLEMS // size)
    return LoopConfig(epochs=float(epochs), log_every=epoch // 5, eval_every=epoch, save_every=epoch)


def course() -> Text2MathConfig:
    """The course's BiLSTM with attention: GloVe of 100, hidden 128, batch 16, 120 epochs, teacher forcing .6, beam 10.

    Command: ``etude run text2math course``.
    Cost: 148,440 steps of 16 problems; about 100 minutes on one CPU core.
    Expected: 63.43 % of the test programs and 66.9 % of the answers right, as a course report has it.
    """
    return Text2MathConfig(
        batch=Batch(size=16),
        optim=OptimConfig(schedule="constant"),
        loop=_loop(120, 16),
        table="architectures",
    )


def laptop() -> Text2MathConfig:
    """The course's networks on CPU cores: batches of 32 at twice the rate, which falls to zero over 40 epochs.

    The attention's scores are scaled: without it, every token looks at one word and the network learns less.

    Command: ``etude run text2math laptop``; all: ``etude study text2math architectures``.
    Cost: 24,760 steps of 32 problems; about 30 minutes on one CPU core.
    Expected: 68.0 % of the test programs and 71.6 % of the answers right; 72.3 and 75.7 with teacher forcing .9.
    """
    return Text2MathConfig(
        model=ModelConfig(scaled=True),
        batch=Batch(size=32),
        optim=OptimConfig(lr=2e-3),
        loop=_loop(40, 32),
        table="architectures",
    )


def ours() -> Text2MathConfig:
    """Our own: copying of numbers, label smoothing, all teacher forcing, a constrained beam of 10.

    Command: ``etude run text2math ours``.
    Cost: 24,760 steps of 32 problems; about 30 minutes on one CPU core.
    Expected: 74.3 % of the test programs and 78.4 % of the answers right.
    """
    return Text2MathConfig(
        model=ModelConfig(hidden=160, dropout=0.3, scaled=True, copies=True),
        data=DataConfig(least_number=100),
        batch=Batch(size=32),
        optim=OptimConfig(lr=3e-3, smoothing=0.1, weight_decay=0.01, warmup=300),
        beam=BeamConfig(grammar=True, executes=True),
        teacher_forcing=1.0,
        loop=_loop(40, 32),
        table="architectures",
    )


def retrieval() -> Text2MathConfig:
    """No network: the program for which the nearest training problems vote.

    The two numbers of the vote, a power of the cosine and a bonus for as many numbers, are learned on training problems
    that are not their own neighbours.

    Command: ``etude run text2math retrieval``.
    Cost: 200 steps of 512 problems; a minute on one CPU core, nearly all of it for the neighbours.
    Expected: 77.2 % of the test programs and 83.4 % of the answers right.
    """
    return Text2MathConfig(
        system="retrieval",
        batch=Batch(size=512),
        optim=OptimConfig(lr=0.1),
        loop=LoopConfig(max_steps=200, log_every=20, eval_every=50, save_every=50, device="cpu"),
    )


def best() -> Text2MathConfig:
    """Our own network, and a choice among the programs of its beam and those of the nearest training problems.

    Command: ``etude run text2math best``; with the network that comes with etude, in minutes:
    ``etude run text2math best --init text2math --loop.max-steps 1``.
    Cost: 24,760 steps of 32 problems, and five minutes for the choice; about 35 minutes on one CPU core.
    Expected: 77.7 % of the test programs and 84.3 % of the answers right; 98 % of the surest 80 %.
    """
    base = ours()
    return replace(base, beam=replace(base.beam, width=20), rerank=RerankConfig(neighbours=60), table="run")


def reads() -> Text2MathConfig:
    """A decoder that reads and copies the programs that neighbours vote for, and the choice of `best`.

    It has not been run to its end yet.

    Command: ``etude run text2math reads``.
    Cost: 7,428 steps of 32 problems; about 30 minutes on one CPU core.
    """
    base = best()
    return replace(base, model=replace(base.model, reads=3), loop=_loop(12, 32))


def smoke() -> Text2MathConfig:
    """Seconds, on the problems that come with etude. Its numbers say only that the parts work.

    Command: ``etude run text2math smoke``.
    """
    return Text2MathConfig(
        model=ModelConfig(embedding=32, hidden=48, dropout=0.0, copies=True),
        data=DataConfig(source="sample", glove=False, least=1),
        batch=Batch(size=16, evaluation=64),
        optim=OptimConfig(lr=3e-3),
        beam=BeamConfig(width=3, grammar=True),
        loop=LoopConfig(max_steps=60, log_every=10, eval_every=30, save_every=30, device="cpu"),
    )


def _architectures(preset: str) -> tuple[Job, ...]:
    """The course's four networks.

    With a BERT the decoder is as wide as the course's was to its encoder. On CPU cores, where there is less time, it is
    narrower; and tuning, of which an epoch takes 15 times as long, starts from the weights of the frozen run.
    """
    table = {"table": "architectures"}
    bert = table | {"model.encoder": "bert", "model.hidden": 768, "model.embedding": 768}
    tuned: dict[str, Any] = {"model.tuned": True, "table": "architectures+beam"}
    last = Job("bert_tuned", bert | tuned)
    if preset == "laptop":
        bert |= {"model.hidden": 256, "model.embedding": 128}
        tuned |= bert | tuned | {"optim.lr": 5e-4, "loop.epochs": 5}
        last = Job("bert_tuned", lambda finished: tuned | {"start": str(finished[0].path)}, after=("bert_frozen",))
    return (
        Job("lstm", table | {"model.attention": False, "model.scaled": False}),
        Job("lstm_attn", table | {"model.attention": True}),
        Job("bert_frozen", bert),
        last,
    )


def _templates(preset: str) -> tuple[Job, ...]:
    """All systems, trained and tested on the template-disjoint split."""
    source, base = {"data.source": "templates"}, STUDY.preset(preset).build()
    systems = {"retrieval": retrieval, "ours": ours, "best": best, "reads": reads}
    return (
        *(_on(job, source) for job in _architectures(preset)),
        *(Job(name, differences(base, build()) | source) for name, build in systems.items()),
    )


def _on(job: Job, settings: dict[str, Any]) -> Job:
    """Return a job with further settings."""
    return replace(job, overrides=lambda finished: {**job.settings(finished), **settings})


def share_name(share: float) -> str:
    """Return the cell of a share of teacher forcing: ``tf06`` for .6."""
    return "tf" + str(float(share)).replace(".", "")


STUDY = Study(
    name="text2math",
    title="Word problems to executable programs",
    about="word problems to MathQA programs: LSTM encoders and decoders, attention, copying, own beam search",
    config=Text2MathConfig,
    presets={
        "course": Preset(course, "full"),
        "laptop": Preset(laptop, "laptop"),
        "ours": Preset(ours, "laptop"),
        "retrieval": Preset(retrieval, "laptop"),
        "best": Preset(best, "laptop"),
        "reads": Preset(reads, "laptop"),
        "smoke": Preset(smoke, "smoke"),
    },
    experiments={
        "architectures": Experiment("without and with attention, a frozen and a fine-tuned BERT", _architectures),
        "teacher-forcing": Experiment(
            "teacher forcing .3, .6 and .9",
            lambda _: tuple(
                Job(share_name(share), {"teacher_forcing": share, "table": "teacher-forcing"})
                for share in (0.3, 0.6, 0.9)
            ),
        ),
        "templates": Experiment("all systems where no problem's text is known but for its numbers", _templates),
        "beam": Experiment(
            "the fine-tuned network with beams of 1, 10 and 20, and each option of the search",
            lambda preset: tuple(job for job in _architectures(preset) if job.name.startswith("bert_")),
        ),
    },
    reads_data=("mathqa",),
    pictures={
        "curves": "training and validation over the steps",
        "lengths": "how many steps the programs of dev have, known and predicted",
        "steps": "execution accuracy of dev by the number of steps of the known program",
        "operators": "the operators most often written in another's place",
        "sureness": "how often dev's answers are right by how sure they are, and among the surest of them",
        "attention": "the weights of a problem's words at every token of its program",
    },
)
