"""Word problems to programs: the training step, the evaluation, the pictures.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.checkpoint import read_weights
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data import mathqa
from etude.nn.plugin import resolve
from etude.nn.user_part import tried, tried_module
from etude.studies.text2math import batches, scores
from etude.studies.text2math.batches import Batch, read_neighbours
from etude.studies.text2math.beam import BeamTree, Hypothesis, beam_search
from etude.studies.text2math.bert import BertEncoder, Pieces, features
from etude.studies.text2math.model import Decoder, LSTMEncoder, Text2Math, loss
from etude.studies.text2math.problems import Problem, Split
from etude.studies.text2math.program import OPERATORS, Operator, numbers_of, real
from etude.studies.text2math.rerank import Candidates, Choice, Chooser, Judged, fit, sureness
from etude.studies.text2math.retrieval import VOTERS, Index
from etude.studies.text2math.splits import SPLITS, checksums, known_and_new, load, named
from etude.studies.text2math.study import BeamConfig, ModelConfig, Text2MathConfig, share_name
from etude.studies.text2math.tokens import PAD, Tokens, Words, vocabularies
from etude.studies.text2math.vote import RetrievalTask


def reader_of(config: ModelConfig, words: Words) -> batches.Reader:
    """Return the reader of problems for a network: its words, or its BERT's tokenizer."""
    return Pieces(config.bert) if config.encoder == "bert" else words


def build_model(config: ModelConfig, words: Words, tokens: Tokens) -> Text2Math:
    """Return the network of a configuration."""
    kind: Any = resolve(config.encoder, {"lstm": LSTMEncoder, "bert": BertEncoder}, "encoder")
    if kind is LSTMEncoder:
        encoder = LSTMEncoder(len(words), config)
    elif kind is BertEncoder:
        encoder = BertEncoder(config)
    else:
        encoder = _own_encoder(kind, config.encoder, len(words))
    decoder = Decoder(len(tokens), encoder.width, config, tokens.indices("n"))
    return Text2Math(encoder, decoder, vocabularies(words, tokens))


def _own_encoder(kind: Any, name: str, num_words: int) -> Any:
    """Return a user's own encoder, called once to check its interface."""
    words_NT = torch.tensor([[1, 2, 1, 1], [1, 2, 0, 0]])
    batch = Batch(words_NT, torch.where(words_NT == 2, 0, -1), torch.tensor([4, 2]))
    given = "2 problems of 4 words"
    encoder, answer = tried_module(f"encoder {name}", lambda: kind(num_words), [batch], given=given)
    width = getattr(encoder, "width", None)
    if not isinstance(width, int):
        raise UserError(f"the encoder {name} has no whole number `width`: it says how wide its states are")
    tried(f"encoder {name} of width {width}", given, lambda: answer, ([2, 4, width], [2, width]))
    return encoder


def write_programs(
    model: Text2Math, problems: Batch, tokens: Tokens, config: BeamConfig, *, size: int,
    tree: BeamTree | None = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """Return what the beam finds for all problems, in their order, ``size`` of them searched at a time."""
    model.eval()
    found: list[list[Hypothesis]] = [[] for _ in range(len(problems))]
    for rows, batch in problems.by_length(size):
        answers = beam_search(
            model, batch, width=config.width, alpha=config.alpha, rule=config.rule,
            grammar=tokens if config.grammar else None, tree=tree,
        )  # fmt: skip
        for row, hypotheses in zip(rows.tolist(), answers, strict=True):
            found[row] = hypotheses
    return found


def choose(
    hypotheses: Sequence[Hypothesis], problem: Problem, tokens: Tokens, executes: bool,
    operators: Mapping[str, Operator] = OPERATORS,
) -> str:  # fmt: skip
    """Return the program that answers a problem: the best hypothesis, or the best one that has a value."""
    programs = [tokens.decode(hypothesis.tokens) for hypothesis in hypotheses] or [""]
    numbers = numbers_of(problem.text)
    valued = (program for program in programs if real(scores.value_of(program, numbers, operators)) is not None)
    return next(valued, programs[0]) if executes else programs[0]


def searches(beam: BeamConfig) -> dict[str, BeamConfig]:
    """Return the beams of the course, and its own of ten with each option of the search."""
    plain = replace(beam, grammar=False, executes=False, rule="nested")
    ten = replace(plain, width=10)
    return {
        "beam1": replace(plain, width=1),
        "beam10": ten,
        "beam20": replace(plain, width=20),
        "beam10, standard": replace(ten, rule="standard"),
        "beam10, executes": replace(ten, executes=True),
        "beam10, grammar": replace(ten, grammar=True),
        "beam10, grammar, executes": replace(ten, grammar=True, executes=True),
    }


class Text2MathTask(Task):
    """A recurrent network that writes programs, trained on the right tokens and its own (scheduled by coins)."""

    def __init__(self, config: Text2MathConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.problems = load(config.data)
        texts = (problem.text for problem in self.problems["train"])
        self.words = Words.of(texts, config.data.least, config.data.least_number)
        self.tokens = Tokens.of(problem.program for problem in self.problems["train"])
        self.reader = reader_of(config.model, self.words)
        self.encoded = {
            split: batches.encode(problems, self.reader, self.tokens, runtime.device)
            for split, problems in self.problems.items()
        }
        self.index = Index(self.problems["train"]) if config.model.reads or config.rerank.neighbours else None
        self._judged: dict[Split, list[Judged]] = {}
        if self.index is not None and config.model.reads:
            self.encoded = {
                split: replace(self.encoded[split], neighbours=self._neighbours(self.index, split)) for split in SPLITS
            }
        randomness.seed_globals(config.seed, "init", 0)
        self.model = build_model(config.model, self.words, self.tokens)
        if isinstance(self.model.encoder, BertEncoder):
            trained = "fine-tuned" if config.model.tuned else "frozen"
            self.vectors = f"{Path(config.model.bert).name}, {trained}"
            if not config.model.tuned:
                size, encoder = config.batch.evaluation, self.model.encoder
                for split, problems in self.encoded.items():
                    found = features(encoder, problems, size).to(runtime.device)
                    self.encoded[split] = replace(problems, features_PD=found)
        else:
            self.vectors = self._start_from_glove()
        self.modules: dict[str, nn.Module] = {"model": self.model}
        self.shared_model = runtime.prepare(self.model)
        optim = config.optim
        bert, rest = [], []
        for name, weight in self.model.named_parameters():
            (bert if name.startswith("encoder.bert.") else rest).append(weight)
        groups = [{"params": rest, "scale": 1.0}]
        if bert:
            groups.append({"params": bert, "scale": optim.bert_lr / optim.lr})
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"adam": self.optimizer}
        self.monitor = ("execution", "max")
        self._order: dict[int, list[Tensor]] = {}

    def _neighbours(self, index: Index, split: Split) -> batches.Neighbours:
        """Return what the decoder reads for a split's problems, of which those of training are not their own."""
        found = index.nearest(self.problems[split], VOTERS, leave_out=split == "train")
        voted, reads = [index.vote(some) for some in found], self.config.model.reads
        return read_neighbours(self.problems[split], voted, index, self.tokens, reads, self.runtime.device)

    @torch.no_grad()
    def _start_from(self, path: Path) -> None:
        """Take the best weights of another run, wherever both networks have a weight of that name and shape."""
        checkpoints = RunFolder.open(path).checkpoints()
        step = checkpoints.best_step
        if step is None:
            raise UserError(f"{path} has no best checkpoint to start from: choose a run that validated")
        tensors, _ = read_weights(checkpoints.weights(step), study="text2math")
        mine = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        shared = [name for name in tensors if name in mine and mine[name].shape == tensors[name].shape]
        same = {name for name in shared if torch.equal(mine[name].cpu(), tensors[name])}
        if "model.encoder.weights_sha256" in set(shared) - same:
            raise UserError(f"{path} was trained on another BERT than {self.config.model.bert}: give that one")
        if "model.vocabularies" not in same:
            raise UserError(f"{path} was trained with other vocabularies: start from a run on the same data")
        for name in shared:
            mine[name].copy_(tensors[name])

    @torch.no_grad()
    def _start_from_glove(self) -> str:
        config = self.config
        if not config.data.glove or not isinstance(self.model.encoder, LSTMEncoder):
            return "random vectors"
        vectors_WD, found_W, name = mathqa.glove(self.words.words, config.model.embedding)
        found = torch.from_numpy(found_W)
        self.model.encoder.words.weight[found] = torch.from_numpy(vectors_WD)[found]
        return f"{name} for {100 * found.float().mean():.0f} % of {len(self.words)} words"

    @property
    def epoch_steps(self) -> int:
        return -(-len(self.encoded["train"]) // self.config.batch.size)

    def batch_rows(self, step: int) -> Tensor:
        """Return the rows of the training problems that a step takes, on the CPU: every epoch has its own order."""
        train, size = self.encoded["train"], self.config.batch.size
        epoch, place = divmod(step, self.epoch_steps)
        if epoch not in self._order:
            draw = self.runtime.generator("train/order", epoch)
            self._order = {epoch: batches.epoch_order(train.host_lengths[0], size, draw)}
        return self._order[epoch][place]

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.encoded["train"]
        if step == 0 and config.start:
            # Not when the task is built: a run that has begun needs the other one no more.
            self._start_from(Path(config.start))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = config.optim.rate(step, self.num_steps) * group["scale"]
        rows, parts = self.batch_rows(step), config.batch.parts
        coins = torch.rand(train.targets_NS.shape[1], generator=self.runtime.generator("train/coins", step))
        _, tokens_N = train.host_lengths

        def entropy(part: int) -> dict[str, Tensor]:
            # An epoch's last batch may have fewer problems than parts: some are then taken twice, and count once.
            mine = rows[part % len(rows) :: parts]
            batch = train.take(mine)
            forced_S = coins[: batch.targets_NS.shape[1]] < config.teacher_forcing
            logits_NSV, _ = self.shared_model(batch, batch.targets_NS, forced_S)
            mean = loss(logits_NSV.float(), batch.targets_NS, config.optim.smoothing)
            # A part with more tokens weighs more, as in one batch.
            share = tokens_N[mine].sum() / tokens_N[rows].sum() if part < len(rows) else 0.0
            return {"loss": mean * share * parts}

        clip = config.optim.clip or None
        means = self.runtime.descend(self.shared_optimizer, entropy, parts, self.shared_model, clip=clip)
        return {"loss": means["loss"]}

    @torch.no_grad()
    def mean_loss(self, split: Split) -> float:
        """Return the cross-entropy of a split's tokens, the right ones fed in; nothing is smoothed."""
        self.model.eval()
        summed, count = 0.0, 0
        for _, batch in self.encoded[split].by_length(self.config.batch.evaluation):
            known = int((batch.targets_NS != PAD).sum())
            forced = torch.ones(batch.targets_NS.shape[1], dtype=torch.bool)
            logits_NSV, _ = self.model(batch, batch.targets_NS, forced)
            if known:
                summed += loss(logits_NSV.float(), batch.targets_NS).item() * known
                count += known
        return summed / max(1, count)

    def answers(self, split: Split, extra: Mapping[str, Any]) -> tuple[list[str], list[scores.Verdict]]:
        """Return the programs that answer a split, by the beam or by what is chosen, and how they fare."""
        if not self.config.rerank.neighbours:
            return self.verdicts(split, self.config.beam)
        programs = [one.program for one in self.chosen(split, extra)]
        return programs, [scores.judge(one, p) for one, p in zip(programs, self.problems[split], strict=True)]

    def verdicts(self, split: Split, beam: BeamConfig) -> tuple[list[str], list[scores.Verdict]]:
        """Return the programs that the network writes for a split, and how they fare."""
        problems = self.problems[split]
        found = write_programs(self.model, self.encoded[split], self.tokens, beam, size=self.config.batch.evaluation)
        programs = [choose(some, p, self.tokens, beam.executes) for some, p in zip(found, problems, strict=True)]
        return programs, [scores.judge(program, p) for program, p in zip(programs, problems, strict=True)]

    def judged(self, split: Split) -> list[Judged]:
        """Return the candidates of a split's problems, those of the beam and of neighbours; they are found once."""
        if split not in self._judged:
            config, problems, encoded = self.config, self.problems[split], self.encoded[split]
            assert self.index is not None
            found = write_programs(self.model, encoded, self.tokens, config.beam, size=config.batch.evaluation)
            candidates = Candidates(self.model, self.tokens, self.index, config.rerank.neighbours)
            self._judged[split] = candidates.judged(problems, encoded, found)
        return self._judged[split]

    def finish(self) -> dict[str, Any]:
        """Return the classifier of candidates, fitted on dev, where the configuration asks for one."""
        return {"chooser": asdict(self._fitted[0])} if self.config.rerank.neighbours else {}

    @cached_property
    def _fitted(self) -> tuple[Chooser, list[Choice]]:
        return fit(self.judged("dev"), self.problems["dev"])

    def chosen(self, split: Split, extra: Mapping[str, Any]) -> list[Choice]:
        """Return what is chosen for each problem of a split: of dev by classifiers that were fitted without it."""
        if split == "dev":
            return self._fitted[1]
        chooser = Chooser.of(extra["chooser"])
        return [chooser.choose(one) for one in self.judged(split)]

    def evaluate(self) -> dict[str, float]:
        _, verdicts = self.verdicts("dev", replace(self.config.beam, width=1))
        return scores.summary(verdicts) | {"loss": self.mean_loss("dev")}

    def heaviest_step(self) -> int:
        """Return the first epoch's step with the most words, which `etude check` trains for its memory."""
        train = self.encoded["train"]

        def words(step: int) -> int:
            rows = self.batch_rows(step)
            return len(rows) * train.longest(rows)[0]

        return max(range(min(self.epoch_steps, self.num_steps)), key=words)

    def rehearse(self) -> None:
        """Write the programs of a batch of the longest problems, as the results will of all."""
        _, longest = next(self.encoded["test"].by_length(self.config.batch.evaluation))
        write_programs(self.model, longest, self.tokens, self.config.beam, size=len(longest))

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config = self.config
        train = self.problems["train"]
        tables = config.table.split("+")
        rows: list[Result] = []
        for split in SPLITS[1:]:
            _, verdicts = self.answers(split, extra)
            sure = [one.probability for one in self.chosen(split, extra)] if config.rerank.neighbours else []
            for table in tables:
                if table != "beam":
                    for name, chosen in known_and_new(train, self.problems[split], split).items():
                        part = [verdicts[row] for row in chosen]
                        rows += self._rows(table, self.cell(table), name, part, config.beam)
                    if sure:
                        about = sureness(sure, [one.execution for one in verdicts], extra["chooser"]["threshold"])
                        rows += self._row(table, self.cell(table), split, about, len(sure), config.beam)
            # The published table is of the fine-tuned BERT.
            network = "" if self.cell("beam") == "bert_tuned" else f"{self.cell('beam')}, "
            for name, beam in searches(config.beam).items() if "beam" in tables else ():
                rows += self._rows("beam", network + name, split, self.verdicts(split, beam)[1], beam)
        return rows

    def _rows(self, table: str, cell: str, split: str, part: list[scores.Verdict], beam: BeamConfig) -> list[Result]:
        return self._row(table, cell, split, scores.summary(part), len(part), beam)

    def _row(
        self, table: str, cell: str, split: str, shares: Mapping[str, float], count: int, beam: BeamConfig
    ) -> list[Result]:
        config = self.config
        epochs = self.num_steps * config.batch.size / len(self.encoded["train"])
        data = named(config.data)
        judged = config.rerank.neighbours
        protocol = (
            f"{data}; {self.vectors}; beam {beam.width} ({beam.rule}{', grammar' if beam.grammar else ''}"
            f"{', first that executes' if beam.executes and not judged else ''}), "
            f"{f'reranked with {judged} neighbours (fitted on dev; dev itself out of fold), ' if judged else ''}"
            f"teacher forcing {config.teacher_forcing:g}, "
            f"up to {epochs:.0f} epochs{' from trained weights' if config.start else ''}, "
            "chosen on dev (execution, beam 1)"
        )
        return [
            Result(table, cell, metric, split, share, protocol, scores.interval(metric, share, count), "%", data)
            for metric, share in shares.items()
        ]

    def cell(self, table: str) -> str:
        """Return the place in a published table that the run belongs to."""
        if table == "teacher-forcing":
            return share_name(self.config.teacher_forcing)
        model = self.config.model
        lstm, bert = "lstm_attn" if model.attention else "lstm", "bert_tuned" if model.tuned else "bert_frozen"
        return {"lstm": lstm, "bert": bert}.get(model.encoder, "own") + "".join(
            f"_{name}"
            for name, there in (
                ("copy", model.copies),
                ("reads", model.reads),
                ("rerank", self.config.rerank.neighbours),
            )
            if there
        )

    def data_checksums(self) -> dict[str, str]:
        return checksums(self.config.data)


def make_task(config: Text2MathConfig, runtime: Runtime) -> Task:
    """Return the task of a configuration's system."""
    return RetrievalTask(config, runtime) if config.system == "retrieval" else Text2MathTask(config, runtime)
