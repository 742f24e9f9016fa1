"""The readable reference of a beam of one."""

import torch
from torch import Tensor

from etude.studies.text2math.batches import Batch
from etude.studies.text2math.model import Text2Math
from etude.studies.text2math.tokens import END, PAD, START


def greedy(model: Text2Math, batch: Batch, max_tokens: int) -> Tensor:
    """Return the likeliest token each time: ``[N, S]``, padded after the end."""
    memory, state = model.encode(batch)
    tokens_N1 = torch.full((len(batch), 1), START, device=batch.words_NT.device)
    written: list[Tensor] = []
    ended_N = torch.zeros(len(batch), dtype=torch.bool, device=batch.words_NT.device)
    for _ in range(max_tokens):
        s_N1H, state = model.decoder.run(tokens_N1, state)
        u_N1H, *_ = model.decoder.attend(s_N1H, memory)
        tokens_N1 = model.decoder.project(u_N1H, memory).argmax(-1)
        written.append(tokens_N1[:, 0].masked_fill(ended_N, PAD))
        ended_N = ended_N | (tokens_N1[:, 0] == END)
        if ended_N.all():
            break
    return torch.stack(written, 1)
