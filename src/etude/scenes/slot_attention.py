r"""Slot Attention: K slots compete for the parts of an image.

Locatello et al. 2020, "Object-centric learning with slot attention", algorithm 1. Every iteration the slots ask, the
inputs answer, and a softmax over the *slots* makes them share each input among themselves:

$$A = \operatorname{softmax}_{slots}(k(x) \, q(s)^\top / \sqrt S), \qquad
W_{nk} = \frac{A_{nk} + \epsilon}{\sum_m (A_{mk} + \epsilon)}, \qquad u = W^\top v(x)$$

$$s \leftarrow \operatorname{GRU}(u, s), \qquad s \leftarrow s + \operatorname{MLP}(\operatorname{LN}(s))$$

Keys $k(x) = x W_k$ and values $v(x) = x W_v$ are linear, and there are far more inputs than slots. So the slots' side
is projected in their place, which is the same by associativity: $(x W_k) q^\top = x (q W_k^\top)^\top$ and
$W^\top (x W_v) = (W^\top x) W_v$. No map of keys or values is ever made. slot_attention_plain.py has the step as the
algorithm reads.

Ways to begin:

- ``gaussian``: every slot from one normal distribution with learned mean and deviation, the paper's;
- ``learned``: a vector of its own for each slot;
- ``bilevel``: those vectors, with noise that the caller lets fade (Jia et al. 2023, "Improving object-centric learning
  with query optimization", BO-QSA).

With ``implicit`` only the last iteration has a gradient (Chang et al. 2022, "Object representations as fixed points"):
a gradient of one step at what is nearly a fixed point. The gradient of the first slots would then be zero; it is passed
straight through to them, as BO-QSA does, so that what the slots begin with is learned.

Shape suffixes: B images, N inputs of an image, D their channels, K slots, S a slot's size, T iterations.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Init = Literal["gaussian", "learned", "bilevel"]
EPSILON = 1e-8
"""Added to every weight before they are normalised over the inputs: a slot that got nothing has a mean too."""


class GRUCell(nn.Module):
    """A gated recurrent unit (Cho et al. 2014), with the names, the start and the values of ``nn.GRUCell``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden_size))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, input_MI: Tensor, hidden_MS: Tensor) -> Tensor:
        """The next hidden state ``[M, S]``."""
        from_input = functional.linear(input_MI, self.weight_ih, self.bias_ih)
        from_hidden = functional.linear(hidden_MS, self.weight_hh, self.bias_hh)
        reset_i, update_i, new_i = from_input.chunk(3, -1)
        reset_h, update_h, new_h = from_hidden.chunk(3, -1)
        reset, update = torch.sigmoid(reset_i + reset_h), torch.sigmoid(update_i + update_h)
        new = torch.tanh(new_i + reset * new_h)
        return new + update * (hidden_MS - new)


@torch.no_grad()
def glorot_(module: nn.Module) -> None:
    """Start every linear layer below as the authors' code does: Glorot's uniform weights, no bias.

    PyTorch's own start is smaller by the root of three. The logits of the attention are then a third as large, slots
    share the picture evenly for longer, and it takes them longer to part.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _exact(x: Tensor) -> Tensor:
    """The values in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Slots:
    """The slots after the last iteration, and the attention of each."""

    slots_BKS: Tensor
    attention_BTKN: Tensor
    """The softmax over the slots: the share of an input that each slot takes."""


class SlotAttention(nn.Module):
    """Algorithm 1.

    Args:
        num_slots: K.
        input_size: D.
        slot_size: S.
        iterations: T in training and, unless `forward` is told another number, in use.
        hidden: units of the residual network; None: twice the slot's size.
        init: how slots begin.
        implicit: whether only the last iteration has a gradient.
    """

    def __init__(
        self, num_slots: int, input_size: int, slot_size: int, *, iterations: int = 3, hidden: int | None = None,
        init: Init = "gaussian", implicit: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_slots, self.slot_size, self.iterations = num_slots, slot_size, iterations
        self.init, self.implicit = init, implicit
        if init == "gaussian":
            # Glorot's uniform start of a [1, 1, S] table.
            bound = (6 / (1 + slot_size)) ** 0.5
            self.mean = nn.Parameter(torch.empty(1, 1, slot_size).uniform_(-bound, bound))
            self.log_deviation = nn.Parameter(torch.empty(1, 1, slot_size).uniform_(-bound, bound))
        else:
            self.start = nn.Parameter(torch.empty(1, num_slots, slot_size))
            nn.init.xavier_uniform_(self.start)
        self.norm_inputs = nn.LayerNorm(input_size)
        self.norm_slots = nn.LayerNorm(slot_size)
        self.norm_mlp = nn.LayerNorm(slot_size)
        # Keys and values in one.
        self.to_keys_and_values = nn.Linear(input_size, 2 * slot_size, bias=False)
        self.to_queries = nn.Linear(slot_size, slot_size, bias=False)
        self.gru = GRUCell(slot_size, slot_size)
        hidden = 2 * slot_size if hidden is None else hidden
        self.mlp = nn.Sequential(nn.Linear(slot_size, hidden), nn.ReLU(), nn.Linear(hidden, slot_size))
        glorot_(self)
        with torch.no_grad():
            # Two layers in one, and each has a start of its own.
            for weight_SD in self.to_keys_and_values.weight.chunk(2):
                nn.init.xavier_uniform_(weight_SD)

    def first(self, count: int | torch.SymInt, noise_BKS: Tensor | None = None, spread: float = 1.0) -> Tensor:
        """The slots before the first iteration.

        Args:
            count: B.
            noise_BKS: standard normal; wanted by ``gaussian``, and by ``bilevel`` unless ``spread`` is 0. More slots
                than K may be asked of ``gaussian``.
            spread: what ``bilevel`` multiplies the noise by.
        """
        if self.init == "gaussian":
            assert noise_BKS is not None, "a Gaussian start wants noise"
            return self.mean + self.log_deviation.exp() * noise_BKS
        start_BKS = self.start.expand(count, -1, -1)
        if self.init == "bilevel" and spread:
            assert noise_BKS is not None, "noise that has not faded is wanted"
            return start_BKS + spread * noise_BKS
        return start_BKS

    @torch.no_grad()
    def spread(self) -> float:
        """The difference of the slots' starts, as a share of their size: 0 is a collapse."""
        if self.init == "gaussian":
            deviation, size = self.log_deviation.exp().square().mean(), self.mean.square().mean()
            return (deviation / (deviation + size)).sqrt().item()
        start_KS = self.start[0]
        return (start_KS.var(0, correction=0).mean() / start_KS.square().mean().clamp(min=1e-12)).sqrt().item()

    def forward(
        self, inputs_BND: Tensor, noise_BKS: Tensor | None = None, *, spread: float = 1.0,
        iterations: int | None = None,
    ) -> Slots:  # fmt: skip
        """The slots and attention of features with their positions, after T iterations or the module's.

        For the noise and its spread see `first`.
        """
        rounds = self.iterations if iterations is None else iterations
        assert rounds >= 1, "at least one iteration"
        inputs_BND = self.norm_inputs(inputs_BND)
        # Not len, by which an exported graph would take the batch for a constant.
        first_BKS = slots_BKS = _exact(self.first(inputs_BND.shape[0], noise_BKS, spread))
        seen: list[Tensor] = []
        for place in range(rounds):
            last = place == rounds - 1
            with torch.set_grad_enabled(torch.is_grad_enabled() and (last or not self.implicit)):
                if last and self.implicit:
                    slots_BKS = slots_BKS.detach() + first_BKS - first_BKS.detach()
                slots_BKS, attention_BKN = self.step(slots_BKS, inputs_BND)
            seen.append(attention_BKN)
        return Slots(slots_BKS, torch.stack(seen, 1))

    def step(self, slots_BKS: Tensor, inputs_BND: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration: the next slots, and the attention ``[B, K, N]`` that made them, both float32 or more.

        The inputs have gone through `norm_inputs`.
        """
        to_keys_SD, to_values_SD = self.to_keys_and_values.weight.chunk(2)
        queries_BKS = self.to_queries(self.norm_slots(slots_BKS)) * self.slot_size**-0.5
        logits_BKN = queries_BKS @ to_keys_SD @ inputs_BND.mT
        # Half precision loses inputs that many slots share, and drifts over the iterations.
        with torch.autocast(slots_BKS.device.type, enabled=False):
            attention_BKN = _exact(logits_BKN).softmax(1)
            weights_BKN = attention_BKN + EPSILON
            # Normalised after the sum, where there is less to divide.
            mean_BKD = weights_BKN @ _exact(inputs_BND) / weights_BKN.sum(-1, keepdim=True)
            updates_BKS = mean_BKD @ _exact(to_values_SD).mT
            shape = slots_BKS.shape
            slots_BKS = self.gru(updates_BKS.flatten(0, 1), slots_BKS.flatten(0, 1)).view(shape)
        slots_BKS = slots_BKS + _exact(self.mlp(self.norm_mlp(slots_BKS)))
        return slots_BKS, attention_BKN
