r"""Retrieval as a system: the nearest training problems vote, and what a vote weighs is learned.

Neighbour $k$ of a problem has the cosine $c_k$ and, $m_k = 1$, as many numbers or not. Its vote, and the probability of
a program $y$, are

$$v_k = \operatorname{softmax}_k (a \log c_k + b\, m_k), \qquad p(y) = \textstyle\sum_{k: y_k = y} v_k$$

$a$ and $b$ are learned by the cross-entropy of training problems that are not their own neighbours, as in neighbourhood
components analysis (Goldberger et al. 2004), where what is learned is the space.

Shape suffixes: N problems, K neighbours.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.studies.text2math import scores
from etude.studies.text2math.problems import Split
from etude.studies.text2math.retrieval import SHARPNESS, Index, Neighbour
from etude.studies.text2math.splits import SPLITS, checksums, known_and_new, load, named
from etude.studies.text2math.study import Text2MathConfig

NEIGHBOURS = 50
_LEAST = 1e-3


class Vote(nn.Module):
    """The weights of neighbours' votes; without training, those of the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(float(SHARPNESS)))
        self.same = nn.Parameter(torch.tensor(5.0))

    def forward(self, cosine_NK: Tensor, same_NK: Tensor) -> Tensor:
        """Return the logarithm of each neighbour's vote, ``[N, K]``."""
        return (self.sharpness * cosine_NK.clamp_min(_LEAST).log() + self.same * same_NK).log_softmax(-1)


class RetrievalTask(Task):
    """The vote of the nearest training problems."""

    def __init__(self, config: Text2MathConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.problems = load(config.data)
        self.index = Index(self.problems["train"])
        self.vote = Vote().to(runtime.device)
        self.modules = {"vote": self.vote}
        self.shared = runtime.prepare(self.vote)
        self.optimizer = torch.optim.Adam(self.vote.parameters(), lr=config.optim.lr)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"adam": self.optimizer}
        self.monitor = ("execution", "max")
        self._found: dict[Split, list[list[Neighbour]]] = {}

    def neighbours(self, split: Split) -> list[list[Neighbour]]:
        """Return the neighbours of a split's problems; they are looked for once."""
        if split not in self._found:
            leave_out = split == "train"
            self._found[split] = self.index.nearest(self.problems[split], NEIGHBOURS, leave_out=leave_out)
        return self._found[split]

    def _votes(self, found: list[list[Neighbour]], vote: nn.Module) -> Tensor:
        device = self.runtime.device
        cosine_NK = torch.tensor([[one.cosine for one in some] for some in found], device=device)
        return vote(cosine_NK, torch.tensor([[float(one.same) for one in some] for some in found], device=device))

    @property
    def epoch_steps(self) -> int:
        return -(-len(self.problems["train"]) // self.config.batch.size)

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        train, found, programs = self.problems["train"], self.neighbours("train"), self.index.programs
        size = min(self.config.batch.size, len(train))
        rows = torch.randperm(len(train), generator=self.runtime.generator("train/order", step))[:size].tolist()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optim.rate(step, self.num_steps)

        def entropy(part: int) -> dict[str, Tensor]:
            mine = rows[part % len(rows) :: self.config.batch.parts]
            log_v_NK = self._votes([found[row] for row in mine], self.shared)
            right_NK = torch.tensor([[programs[one.row] == programs[row] for one in found[row]] for row in mine])
            # Nothing is learned of problems whose program no neighbour has.
            known_N = right_NK.any(1)
            right_NK = right_NK[known_N].to(log_v_NK.device)
            log_p_N = log_v_NK[known_N.to(log_v_NK.device)].masked_fill(~right_NK, float("-inf")).logsumexp(1)
            return {"loss": -log_p_N.sum() / len(mine)}

        parts = self.config.batch.parts
        return {"loss": self.runtime.descend(self.shared_optimizer, entropy, parts, self.shared)["loss"]}

    @torch.no_grad()
    def verdicts(self, split: Split) -> list[scores.Verdict]:
        """Return how the programs fare that have most of the vote."""
        found, programs = self.neighbours(split), self.index.programs
        verdicts: list[scores.Verdict] = []
        for problem, some, votes in zip(self.problems[split], found, self._votes(found, self.vote).exp(), strict=True):
            shares: dict[str, float] = {}
            for one, vote in zip(some, votes.tolist(), strict=True):
                shares[programs[one.row]] = shares.get(programs[one.row], 0.0) + vote
            verdicts.append(scores.judge(max(shares, key=lambda program: shares[program]), problem))
        return verdicts

    def evaluate(self) -> dict[str, float]:
        return scores.summary(self.verdicts("dev"))

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        data = named(self.config.data)
        protocol = f"{data}; vote of the {NEIGHBOURS} nearest (TF-IDF, numbers masked), its weights learned on train"
        return [
            Result("run", "retrieval", metric, name, share, protocol,
                   scores.interval(metric, share, len(chosen)), "%", data)
            for split in SPLITS[1:]
            for verdicts in [self.verdicts(split)]
            for name, chosen in known_and_new(self.problems["train"], self.problems[split], split).items()
            for metric, share in scores.summary([verdicts[row] for row in chosen]).items()
        ]  # fmt: skip

    def data_checksums(self) -> dict[str, str]:
        return checksums(self.config.data)
