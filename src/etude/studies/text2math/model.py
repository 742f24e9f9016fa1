r"""Encoders of problems and the decoder of programs.

The decoder is a recurrent network over the tokens written so far. With attention (Luong et al. 2015, section 3.1, score
"general", without input feeding) its state $s_t$ asks the encoder's states $h_i$:

$$\alpha_{ti} = \operatorname{softmax}_i (s_t^\top W h_i), \qquad
u_t = \tanh(W_c [s_t; \textstyle\sum_i \alpha_{ti} h_i])$$

and without it $u_t = s_t$. The next token's logits are $W_o u_t$. With copying, the logit of a number $n_i$ gains
$(Q u_t)^\top K h_{p(i)}$, where $p(i)$ is the number's place in the problem: what a number is follows from its
surroundings and not from its index (in the spirit of the pointers of Vinyals et al. 2015).

A decoder that reads (``reads``) also has before it the programs that the nearest training problems vote for. A state
$r_j$ of each of their tokens $z_j$ sees the token's neighbours, and with a second attention $\beta_{tj}$ the decoder
mixes what it writes itself with what it copies (the pointer-generator of See et al. 2017, section 2.2):

$$u_t = \tanh(W_c [s_t; \textstyle\sum_i \alpha_{ti} h_i] + W_r \textstyle\sum_j \beta_{tj} r_j), \qquad
p(y) = (1 - g_t) \operatorname{softmax}(W_o u_t)_y + g_t \textstyle\sum_{j: z_j = y} \beta_{tj}, \qquad
g_t = \sigma(w^\top u_t + b)$$

The recurrent layers are PyTorch's. $W h_i$ and $K h_{p(i)}$ are computed once a problem.

Shape suffixes: N problems, K hypotheses, T words, S tokens, V vocabulary of tokens, D encoder states, H decoder states,
M numbers of a problem, R programs that are read, L tokens of the longest of them, J = R L, F what is known of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.studies.text2math.batches import NEIGHBOUR_FEATURES, Batch, Neighbours
from etude.studies.text2math.study import ModelConfig
from etude.studies.text2math.tokens import MAX_NUMBERS, PAD, START


@dataclass(frozen=True)
class Memory:
    """The encoded problems as the decoder reads them; computed once.

    Attributes:
        states_NTD: the encoder's states $h_i$.
        keys_NTH: $W h_i$, the keys of the attention.
        mask_NT: True where there is a word.
        number_keys_NMH: $K h_{p(i)}$, the keys of copying; None without copying.
        number_mask_NM: True where the problem has the number.
        read: what the decoder reads of the programs of neighbours; None where it reads none.
    """

    states_NTD: Tensor
    keys_NTH: Tensor
    mask_NT: Tensor
    number_keys_NMH: Tensor | None
    number_mask_NM: Tensor
    read: "Read | None" = None

    def take(self, rows_N: Tensor) -> "Memory":
        """Return the memory of some problems."""
        keys = None if self.number_keys_NMH is None else self.number_keys_NMH[rows_N]
        return Memory(
            self.states_NTD[rows_N], self.keys_NTH[rows_N], self.mask_NT[rows_N], keys, self.number_mask_NM[rows_N],
            None if self.read is None else self.read.take(rows_N),
        )  # fmt: skip


@dataclass(frozen=True)
class Read:
    """The programs of neighbours, one after the other.

    Attributes:
        states_NJH: the states $r_j$ of their tokens.
        keys_NJH: the keys of the second attention.
        tokens_NJ: the tokens $z_j$; PAD between and after them.
    """

    states_NJH: Tensor
    keys_NJH: Tensor
    tokens_NJ: Tensor

    def take(self, rows_N: Tensor) -> "Read":
        """Return the programs of some problems' neighbours."""
        return Read(self.states_NJH[rows_N], self.keys_NJH[rows_N], self.tokens_NJ[rows_N])


State = tuple[Tensor, Tensor]
"""The decoder's output and cell, each ``[layers, N, H]``, or ``[layers, N * K, H]`` in a beam."""


class LSTMEncoder(nn.Module):
    """A bidirectional LSTM over words; a word that is a number is also known by its index.

    D is twice ``config.hidden``; the summary is each direction's last state.
    """

    def __init__(self, num_words: int, config: ModelConfig) -> None:
        super().__init__()
        embedding, hidden = config.embedding, config.hidden
        self.width = 2 * hidden
        self.words = nn.Embedding(num_words, embedding, padding_idx=PAD)
        # Row 0 stands for all that is no number.
        self.indices = nn.Embedding(MAX_NUMBERS + 1, embedding, padding_idx=0) if config.marks_numbers else None
        # The word stands in the nearest problem of the r-th program that is read, too.
        self.shared = nn.Linear(config.reads, embedding, bias=False) if config.reads else None
        self.dropout = nn.Dropout(config.dropout)
        sizes = [embedding, *[2 * hidden] * (config.layers - 1)]
        self.forwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x_NTE = self.words(batch.words_NT)
        if self.indices is not None:
            x_NTE = x_NTE + self.indices((batch.indices_NT + 1).clamp(0, MAX_NUMBERS))
        if self.shared is not None and batch.neighbours is not None:
            x_NTE = x_NTE + self.shared(batch.neighbours.shared_NTR)
        # Each problem turned round within its own length. Two plain passes are several times as fast on the CPU as one
        # over packed sequences, which PyTorch runs word by word.
        place_T = torch.arange(x_NTE.shape[1], device=x_NTE.device)
        last_N1 = batch.lengths_N[:, None] - 1
        turned_NT1 = torch.where(place_T <= last_N1, last_N1 - place_T, place_T)[..., None]
        last_N11 = last_N1[..., None]
        summary_ND = x_NTE.new_zeros(0)
        for there, back in zip(self.forwards, self.backwards, strict=True):
            x_NTE = self.dropout(x_NTE)
            there_NTH, _ = there(x_NTE)
            back_NTH, _ = back(x_NTE.gather(1, turned_NT1.expand_as(x_NTE)))
            ends = (there_NTH, back_NTH)
            summary_ND = torch.cat([h.gather(1, last_N11.expand(-1, 1, h.shape[-1]))[:, 0] for h in ends], -1)
            x_NTE = torch.cat([there_NTH, back_NTH.gather(1, turned_NT1.expand_as(back_NTH))], -1)
        return x_NTE, summary_ND


class Decoder(nn.Module):
    """The LSTM that writes programs, with Luong's attention and copying where asked for.

    Args:
        num_tokens: V.
        width: D of the encoder.
        config: its sizes, layers and dropout, and whether it has attention, scales it, and copies.
        number_V: the i of each token that is the number ``n_i``, -1 for the others.
    """

    number_places_U: Tensor
    numbers_U: Tensor

    def __init__(self, num_tokens: int, width: int, config: ModelConfig, number_V: Sequence[int]) -> None:
        super().__init__()
        self.layers, self.hidden = layers, hidden = config.layers, config.hidden
        # Scaled, the attention does not settle on one word early (Vaswani et al. 2017, section 3.2.1).
        self.temperature = hidden**0.5 if config.scaled else 1.0
        self.tokens = nn.Embedding(num_tokens, config.embedding, padding_idx=PAD)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(config.embedding, hidden, layers, batch_first=True, dropout=between)
        self.start = nn.Linear(width, 2 * layers * hidden)
        self.keys = nn.Linear(width, hidden, bias=False) if config.attention else None
        self.combine = nn.Linear(hidden + width, hidden) if config.attention else None
        self.logits = nn.Linear(hidden, num_tokens)
        self.number_keys = nn.Linear(width, hidden) if config.copies else None
        self.number_queries = nn.Linear(hidden, hidden, bias=False) if config.copies else None
        self.reader = Reader(config) if config.reads else None
        # The tokens that are numbers, and which: found once, for a search of them waits for the device.
        numbers = {place: index for place, index in enumerate(number_V) if index >= 0}
        self.register_buffer("number_places_U", torch.tensor([*numbers], dtype=torch.int64), persistent=False)
        self.register_buffer("numbers_U", torch.tensor([*numbers.values()], dtype=torch.int64), persistent=False)

    def remember(self, states_NTD: Tensor, batch: Batch) -> Memory:
        """Return what every step of the decoder reads of the problems."""
        num, words = batch.words_NT.shape
        keys_NTH = states_NTD.new_zeros(num, words, 0) if self.keys is None else self.keys(states_NTD)
        # The place of every number; a problem may have more than have an index.
        known_NT = (batch.indices_NT >= 0) & (batch.indices_NT < MAX_NUMBERS)
        # The last column takes the words that are none, and is left out.
        column_NT = batch.indices_NT.where(known_NT, MAX_NUMBERS)
        place_NT = torch.arange(words, device=states_NTD.device).expand(num, -1)
        place_NM = torch.zeros(num, MAX_NUMBERS + 1, dtype=torch.int64, device=states_NTD.device)
        place_NM = place_NM.scatter(1, column_NT, place_NT)[:, :MAX_NUMBERS]
        number_mask_NM = torch.arange(MAX_NUMBERS, device=states_NTD.device) < batch.counts[:, None]
        number_keys = None
        if self.number_keys is not None:
            gathered_NMD = states_NTD.gather(1, place_NM[..., None].expand(-1, -1, states_NTD.shape[-1]))
            number_keys = self.number_keys(gathered_NMD)
        read = None
        if self.reader is not None and batch.neighbours is not None:
            read = self.reader(self.tokens, self.dropout, batch.neighbours)
        return Memory(states_NTD, keys_NTH, batch.mask, number_keys, number_mask_NM, read)

    def begin(self, summary_ND: Tensor) -> State:
        r"""Return the state before the first token, $\tanh(W_0\, \text{summary})$."""
        both = self.start(summary_ND).tanh().unflatten(1, (2, self.layers, self.hidden))
        return both[:, 0].transpose(0, 1).contiguous(), both[:, 1].transpose(0, 1).contiguous()

    def run(self, tokens_NS: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs $s_t$ of the LSTM over some tokens, ``[N, S, H]``, and its state after them."""
        return self.lstm(self.dropout(self.tokens(tokens_NS)), state)

    def attend(self, s_NSH: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return $u_t$, of which the logits are computed, ``[N, S, H]``, and the weights of what was attended to.

        Returns:
            $u_t$; the weights of the words ``[N, S, T]``; those of the tokens that are read, ``[N, S, J]``, or None.
        """
        if self.keys is None or self.combine is None:
            return self.dropout(s_NSH), s_NSH.new_zeros(*s_NSH.shape[:2], 0), None
        # Luong et al. 2015, equations 8 (general), 7 and 5.
        scores_NST = s_NSH @ memory.keys_NTH.transpose(1, 2) / self.temperature
        weights_NST = scores_NST.masked_fill(~memory.mask_NT[:, None], float("-inf")).softmax(-1)
        context_NSD = weights_NST @ memory.states_NTD
        mixed_NSH, copied_NSJ = self.combine(torch.cat([s_NSH, context_NSD], -1)), None
        if memory.read is not None and self.reader is not None:
            scores_NSJ = s_NSH @ memory.read.keys_NJH.transpose(1, 2) / self.temperature
            copied_NSJ = scores_NSJ.masked_fill((memory.read.tokens_NJ == PAD)[:, None], float("-inf")).softmax(-1)
            mixed_NSH = mixed_NSH + self.reader.mix(copied_NSJ @ memory.read.states_NJH)
        return self.dropout(mixed_NSH.tanh()), weights_NST, copied_NSJ

    def project(self, u_NSH: Tensor, memory: Memory, copied_NSJ: Tensor | None = None) -> Tensor:
        """Return the logits of the next tokens ``[N, S, V]``, equation 6; log-probabilities where tokens are copied."""
        logits_NSV = self.logits(u_NSH)
        if self.number_queries is not None and memory.number_keys_NMH is not None:
            scores_NSM = self.number_queries(u_NSH) @ memory.number_keys_NMH.transpose(1, 2) / self.hidden**0.5
            # A number that the problem does not have keeps the logit of its index alone.
            scores_NSM = scores_NSM * memory.number_mask_NM[:, None]
            logits_NSV = logits_NSV.index_add(-1, self.number_places_U, scores_NSM[..., self.numbers_U])
        if copied_NSJ is None or memory.read is None or self.reader is None:
            return logits_NSV
        # See et al. 2017, equations 8 and 9.
        gate_NS1 = self.reader.gate(u_NSH)
        tokens_NSJ = memory.read.tokens_NJ[:, None].expand_as(copied_NSJ)
        copied_NSV = torch.zeros_like(logits_NSV).scatter_add(-1, tokens_NSJ, copied_NSJ)
        written_NSV = functional.logsigmoid(-gate_NS1) + logits_NSV.log_softmax(-1)
        return torch.logaddexp(written_NSV, functional.logsigmoid(gate_NS1) + copied_NSV.clamp_min(1e-9).log())


class Reader(nn.Module):
    """The part of a decoder that reads and copies the programs of neighbours."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.about = nn.Linear(NEIGHBOUR_FEATURES, config.embedding)
        self.ranks = nn.Embedding(config.reads, config.embedding)
        self.window = nn.Conv1d(config.embedding, hidden, 3, padding=1)
        self.keys = nn.Linear(hidden, hidden, bias=False)
        self.mix = nn.Linear(hidden, hidden, bias=False)
        self.gate = nn.Linear(hidden, 1)

    def forward(self, embedding: nn.Embedding, dropout: nn.Dropout, neighbours: Neighbours) -> Read:
        """Return the states and keys of the programs' tokens."""
        num, reads, _ = neighbours.tokens_NRL.shape
        ranks_R1E = self.ranks(torch.arange(reads, device=neighbours.tokens_NRL.device))[:, None]
        x_NRLE = embedding(neighbours.tokens_NRL) + ranks_R1E + self.about(neighbours.about_NRF)[:, :, None]
        # The window sees nothing beyond a program's end, wherever the longest of the batch ends.
        x_NRLE = x_NRLE * (neighbours.tokens_NRL != PAD)[..., None]
        states_BHL = self.window(dropout(x_NRLE).flatten(0, 1).transpose(1, 2)).tanh()
        states_NJH = states_BHL.transpose(1, 2).reshape(num, -1, states_BHL.shape[1])
        return Read(states_NJH, self.keys(states_NJH), neighbours.tokens_NRL.flatten(1))


class Text2Math(nn.Module):
    """An encoder and a decoder, with the vocabularies that they were made for as bytes (`tokens.vocabularies`)."""

    def __init__(self, encoder: Any, decoder: Decoder, vocabularies: Tensor | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("vocabularies", vocabularies)

    def encode(self, batch: Batch) -> tuple[Memory, State]:
        """Return what the decoder reads of the problems, and its first state."""
        states_NTD, summary_ND = self.encoder(batch)
        return self.decoder.remember(states_NTD, batch), self.decoder.begin(summary_ND)

    def step(self, tokens_NK: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        """Return the log-probabilities of the next token after the last ones, ``[N, K, V]``, and the state after it.

        The memory is read in place: there is no copy of it for every hypothesis.
        """
        num, width = tokens_NK.shape
        s_B1H, state = self.decoder.run(tokens_NK.reshape(-1, 1), state)
        u_NKH, _, copied_NKJ = self.decoder.attend(s_B1H.view(num, width, -1), memory)
        return self.decoder.project(u_NKH, memory, copied_NKJ).log_softmax(-1), state

    def forward(self, batch: Batch, targets_NS: Tensor, coins_S: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of every target under scheduled teacher forcing.

        Args:
            batch: the problems.
            targets_NS: the right tokens; the first input is the start token.
            coins_S: bool, on the CPU; True feeds a step the right token before it (teacher forcing), False the one
                that the decoder itself finds likeliest. The first is not looked at.

        Returns:
            Logits ``[N, S, V]``, and the attention's weights ``{"attention": [N, S, T]}``.
        """
        memory, state = self.encode(batch)
        decoder = self.decoder
        start_N1 = torch.full_like(targets_NS[:, :1], START)
        inputs_NS = torch.cat([start_N1, targets_NS[:, :-1]], 1)
        # Between two steps that need the decoder's own token, all is known: one call of the network for the stretch.
        own = [step for step, forced in enumerate(coins_S.tolist()) if step > 0 and not forced]
        bounds = [0, *own, targets_NS.shape[1]]
        stretches: list[Tensor] = []
        first_N1 = start_N1
        for begin, end in pairwise(bounds):
            tokens = torch.cat([first_N1, inputs_NS[:, begin + 1 : end]], 1)
            s_NSH, state = decoder.run(tokens, state)
            stretches.append(s_NSH)
            if end < targets_NS.shape[1]:
                with torch.no_grad():
                    u_N1H, _, copied_N1J = decoder.attend(s_NSH[:, -1:], memory)
                    first_N1 = decoder.project(u_N1H, memory, copied_N1J).argmax(-1)
        u_NSH, weights_NST, copied_NSJ = decoder.attend(torch.cat(stretches, 1), memory)
        return decoder.project(u_NSH, memory, copied_NSJ), {"attention": weights_NST}


@torch.no_grad()
def attention_over(model: Text2Math, batch: Batch, ids: Sequence[int]) -> Tensor:
    """Return the attention's weights of one problem's words at each token of a program, ``ids``: float32 ``[S, T]``."""
    targets_1S = torch.tensor([list(ids)], device=batch.words_NT.device)
    _, seen = model(batch, targets_1S, torch.ones(len(ids), dtype=torch.bool))
    return seen["attention"][0].float().cpu()


def loss(logits_NSV: Tensor, targets_NS: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of the right tokens, padding left out; a scalar."""
    return functional.cross_entropy(
        logits_NSV.flatten(0, 1), targets_NS.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )
