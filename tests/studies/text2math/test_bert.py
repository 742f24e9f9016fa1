"""A BERT as the encoder, on a tiny one of random weights that is made here."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.core.errors import UserError
from etude.core.runtime import Runtime
from etude.studies.text2math.batches import Batch, encode
from etude.studies.text2math.bert import BertEncoder, Pieces, features
from etude.studies.text2math.study import ModelConfig, smoke
from etude.studies.text2math.task import Text2MathTask

transformers = pytest.importorskip("transformers")

TEXT = "a train of 120 metres"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "of", "train", "metre", "##s", "1", "##2", "##0"]
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(str(path / "vocab.txt"), do_lower_case=True).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertModel(config).save_pretrained(path)
    return path


def task(folder: Path, **changes: Any) -> Text2MathTask:
    config = smoke()
    model = dataclasses.replace(config.model, encoder="bert", bert=str(folder), **changes.pop("model", {}))
    loop = dataclasses.replace(config.loop, **changes.pop("loop", {}))
    config = dataclasses.replace(config, model=model, loop=loop, **changes)
    return Text2MathTask(config, Runtime(config.loop, 0))


def test_a_number_is_known_by_its_first_piece(folder: Path) -> None:
    pieces = Pieces(str(folder))
    assert pieces.spell(TEXT) == ["[CLS]", "a", "train", "of", "1", "##2", "##0", "metre", "##s", "[SEP]"]
    ids, indices = pieces.read(TEXT)
    assert indices == [-1, -1, -1, -1, 0, -1, -1, -1, -1, -1]
    assert len(ids) == len(indices)
    long, _ = pieces.read("train " * 2000)
    assert len(long) == 512
    assert long[0] == ids[0]
    assert long[-1] == ids[-1]


@torch.no_grad()
def test_states_are_those_of_transformers(folder: Path) -> None:
    """Alone and in a padded batch, as the library's own tokenizer and model give them."""
    built = task(folder)
    encoder, pieces = built.model.encoder, Pieces(str(folder))
    texts = [TEXT, "a metre of a train of 10 metres of 2 trains"]
    rows = [pieces.read(text)[0] for text in texts]
    longest = max(map(len, rows))
    words = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    states = encoder.read(Batch(words, torch.full_like(words, -1), lengths))
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(texts):
        wanted = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert len(wanted) == lengths[row]
        assert torch.allclose(states[row, : lengths[row]], wanted, atol=1e-5)


def test_frozen_features_are_the_states(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))
    built = task(folder)
    again = task(folder)
    encoded = built.encoded["dev"]
    assert encoded.features_PD is not None
    assert again.encoded["dev"].features_PD is not None
    assert torch.equal(encoded.features_PD, again.encoded["dev"].features_PD)
    rows = torch.tensor([3, 0, 7])
    batch = encoded.take(rows)
    with torch.no_grad():
        fresh = built.model.encoder.read(dataclasses.replace(batch, features_PD=None))
    stored = batch.features()
    assert stored is not None
    for row, length in enumerate(batch.lengths_N.tolist()):
        assert torch.allclose(stored[row, :length], fresh[row, :length], atol=5e-3)


def test_a_frozen_bert_is_no_part_of_the_weights(folder: Path) -> None:
    frozen, tuned = task(folder), task(folder, model={"tuned": True})
    assert not [name for name in frozen.model.state_dict() if ".bert." in name]
    names = [name for name, _ in tuned.model.named_parameters() if ".bert." in name]
    assert names
    assert not [name for name in names if "pooler" in name]
    before = {name: weight.detach().clone() for name, weight in tuned.model.named_parameters()}
    tuned.train_step(0)
    moved = {name for name, weight in tuned.model.named_parameters() if not torch.equal(before[name], weight)}
    assert any(".bert.encoder" in name for name in moved)
    rates = sorted(group["lr"] for group in tuned.optimizer.param_groups)
    assert rates == pytest.approx([5e-5, 3e-3])
    state = {name: value.clone() for name, value in frozen.model.encoder._frozen[0].state_dict().items()}
    frozen.train_step(0)
    assert not frozen.model.encoder._frozen[0].training
    assert all(torch.equal(state[name], value) for name, value in frozen.model.encoder._frozen[0].state_dict().items())


def test_another_bert_of_the_same_size_is_refused(folder: Path, tmp_path: Path) -> None:
    """A frozen one is no part of the checkpoint, and nothing else would tell."""
    torch.manual_seed(1)
    transformers.BertModel(transformers.BertConfig.from_pretrained(folder)).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    first, other = task(folder), task(tmp_path)
    weights = {name: value.clone() for name, value in first.model.state_dict().items()}
    first.model.load_state_dict(weights)
    with pytest.raises(UserError, match=r"trained on another BERT \(weights [0-9a-f]{12}\) than .*: give that one"):
        other.model.load_state_dict(weights)


def test_it_learns(folder: Path) -> None:
    built = task(folder, loop={"max_steps": 30})
    losses = [built.train_step(step)["loss"].item() for step in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_bert_of_few_places_reads_a_problems_beginning(folder: Path, tmp_path: Path) -> None:
    config = transformers.BertConfig.from_pretrained(folder)
    config.max_position_embeddings = 12
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    ids, indices = Pieces(str(tmp_path)).read(TEXT * 3)
    assert len(ids) == len(indices) == 12
    assert ids[-1] == Pieces(str(folder)).read(TEXT)[0][-1]
    losses = task(tmp_path, model={"tuned": True}).train_step(0)
    assert losses["loss"].isfinite()


def test_broken_weights_are_one_line(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match=r"no BERT .*header"):
        BertEncoder(ModelConfig(encoder="bert", bert=str(broken)))


def test_no_bert_is_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"no BERT .*--model\.bert"):
        Pieces(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no BERT"):
        BertEncoder(ModelConfig(encoder="bert", bert=str(tmp_path / "absent")))


def test_features_follow_the_text_and_the_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))
    built = task(folder)
    other = tmp_path / "other"
    torch.manual_seed(1)
    model = transformers.BertModel(transformers.BertConfig.from_pretrained(folder))
    model.save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(other)
    second = task(other)
    mine, theirs = built.encoded["dev"].features_PD, second.encoded["dev"].features_PD
    assert mine is not None
    assert theirs is not None
    assert mine.shape == theirs.shape
    assert not torch.allclose(mine.float(), theirs.float(), atol=0.1)
    part = encode(built.problems["dev"][:3], built.reader, built.tokens, torch.device("cpu"))
    assert len(features(built.model.encoder, part, 64)) == part.lengths_N.sum()
