"""BERT as the encoder: any BERT-like model of the hub or of a folder, by transformers (extra ``bert``).

A word is cut into pieces by the model's own tokenizer, and a number keeps its index on its first piece. The summary of
a problem is the mean of its states. A BERT that does not learn is no part of a checkpoint: its weights are those of its
name; and what it says of a problem is computed once and kept in the cache.

Shape suffixes as in model.py; T counts pieces.
"""

import hashlib
import pickle
import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.core.errors import UserError, extra
from etude.data.cache import decoded, digest
from etude.studies.text2math.batches import Batch
from etude.studies.text2math.study import ModelConfig
from etude.studies.text2math.tokens import MAX_NUMBERS, words_of

_VERSION = 1
_MAX_PIECES = 512


def _loaded(kind: str, name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"a BERT needs transformers ({error}): {extra('bert')}") from error
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # What PyTorch says of pickles of other programs, the error says.
            warnings.simplefilter("ignore", UserWarning)
            # Else a folder that names code of its own would be asked about on the terminal.
            return getattr(transformers, kind).from_pretrained(name, trust_remote_code=False)
    # A garbled folder fails in many ways.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        if isinstance(error, pickle.UnpicklingError):
            reason = "its weights hold more than tensors, which could run code when read"
        raise UserError(f"no BERT '{name}' ({reason}): give a folder or a hub name with --model.bert") from error


class Pieces:
    """The tokenizer of a BERT of the hub or a folder, word by word; it must have ``[CLS]`` and ``[SEP]``."""

    def __init__(self, name: str) -> None:
        self._tokenizer: Any = _loaded("AutoTokenizer", name)
        first, last = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        if first is None or last is None:
            raise UserError(f"'{name}' is not BERT-like: its tokenizer has no [CLS] and [SEP]")
        self._first, self._last = int(first), int(last)
        self._most = min(_MAX_PIECES, getattr(_loaded("AutoConfig", name), "max_position_embeddings", _MAX_PIECES))
        self._known: dict[str, list[int]] = {}

    def _pieces(self, word: str) -> list[int]:
        if word not in self._known:
            ids = self._tokenizer(word, add_special_tokens=False)["input_ids"]
            self._known[word] = [int(number) for number in ids] or [int(self._tokenizer.unk_token_id)]
        return self._known[word]

    def read(self, text: str) -> tuple[list[int], list[int]]:
        """Return the pieces of a problem, and of each piece the index of the number that it begins, or -1.

        ``[CLS]`` comes first and ``[SEP]`` last; what is longer than 512 pieces, or than the BERT reads, is cut.
        """
        ids, marks = [self._first], [-1]
        for word, index in zip(*words_of(text), strict=True):
            pieces = self._pieces(word)
            ids += pieces
            marks += [index, *[-1] * (len(pieces) - 1)]
        return [*ids[: self._most - 1], self._last], [*marks[: self._most - 1], -1]

    def spell(self, text: str) -> list[str]:
        """Return the pieces as the tokenizer writes them."""
        return list(self._tokenizer.convert_ids_to_tokens(self.read(text)[0]))


class BertEncoder(nn.Module):
    """The last layer's states of a BERT; a piece that begins a number is also known by its index.

    A BERT that is not tuned is only read, and lies in no checkpoint.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        name, tuned = config.bert, config.tuned
        bert: Any = _loaded("AutoModel", name)
        if getattr(bert, "pooler", None) is not None:
            # Its output is not used, and an unused weight would never get a gradient.
            bert.pooler = None
        self.width = int(bert.config.hidden_size)
        self.bert: Any = bert if tuned else None
        # In a tuple it is no submodule.
        self._frozen: tuple[Any, ...] = () if tuned else (bert.eval().requires_grad_(False),)
        self.name = name
        if not tuned:
            # A checkpoint without the weights says which they were.
            self.register_buffer(
                "weights_sha256", torch.tensor(list(bytes.fromhex(self.fingerprint)), dtype=torch.uint8)
            )
            self.register_load_state_dict_post_hook(_refuse_other_bert)
        # BERTs differ in the size of their states, and the index of a number must not drown what surrounds it.
        self.norm = nn.LayerNorm(self.width)
        self.indices = nn.Embedding(MAX_NUMBERS + 1, self.width, padding_idx=0) if config.marks_numbers else None
        if self.indices is not None:
            nn.init.normal_(self.indices.weight[1:], std=0.3)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, batch: Batch) -> Tensor:
        """Return the BERT's own states ``[N, T, D]``."""
        bert = self.bert if self.bert is not None else self._frozen[0].to(batch.words_NT.device)
        return bert(input_ids=batch.words_NT, attention_mask=batch.mask.long()).last_hidden_state

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        features_NTD = batch.features()
        states_NTD = self.norm(self.read(batch) if features_NTD is None else features_NTD)
        if self.indices is not None:
            states_NTD = states_NTD + self.indices((batch.indices_NT + 1).clamp(0, MAX_NUMBERS))
        states_NTD = self.dropout(states_NTD)
        weights_NT = batch.mask.to(states_NTD.dtype) / batch.lengths_N[:, None]
        return states_NTD, torch.einsum("ntd,nt->nd", states_NTD, weights_NT)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the frozen weights."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self._frozen[0].state_dict().items()):
            whole.update(name.encode())
            whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()


def _refuse_other_bert(encoder: nn.Module, _: Any) -> None:
    # The buffer now holds what the checkpoint was trained on.
    assert isinstance(encoder, BertEncoder)
    was = bytes(encoder.get_buffer("weights_sha256").tolist()).hex()
    if was != encoder.fingerprint:
        raise UserError(
            f"the network was trained on another BERT (weights {was[:12]}) than {encoder.name} "
            f"({encoder.fingerprint[:12]}): give that one"
        )


def features(encoder: BertEncoder, problems: Batch, size: int) -> Tensor:
    """Return a frozen BERT's states of every piece of all problems, float16 ``[P, D]``, ``size`` problems at a time.

    They are computed once for all runs, and kept in the cache.
    """
    total = int(problems.host_lengths[0].sum())
    parts, starts_N = list(problems.by_length(size)), problems.starts_N.cpu()

    def build(to: np.ndarray) -> None:
        for rows_N, batch in parts:
            with torch.inference_mode():
                states_NTD = encoder.read(batch).half().cpu()
            known_NT = batch.mask.cpu()
            places_NT = starts_N[rows_N][:, None] + torch.arange(known_NT.shape[1])
            to[places_NT[known_NT].numpy()] = states_NTD[known_NT].numpy()

    texts = hashlib.sha256()
    for rows_N, batch in parts:
        texts.update(rows_N.numpy().tobytes() + batch.words_NT.cpu().numpy().tobytes())
    key = digest(encoder.fingerprint, texts.hexdigest())
    return torch.from_numpy(np.array(decoded("mathqa", key, _VERSION, (total, encoder.width), build, dtype=np.float16)))
