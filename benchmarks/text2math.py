"""Word problems: beam search beside transformers' `generate` and a plain loop, training beside tutorials' loops.

Command: ``uv run --extra bench python benchmarks/text2math.py``. The protocol is in benchmarks/README.md.

transformers has no recurrent encoder-decoder, so its peer is one of its own kind: `MarianMTModel`, made for
translation, with one layer on either side, etude's width, and feed-forward layers four times as wide, as is usual:
about as many weights as etude's network. Of the library's small encoder-decoders it is the fairest: it has a vocabulary
for each side, where those of BART and T5 are one, so that they would choose among eight hundred words where etude
chooses among 44 tokens; and its last layer is a plain matrix, where a pair of BERTs has a dense layer and a norm before
it. It was also the quickest of the four. `generate` also runs around etude's own network: what then differs is the
search alone.

Networks with random weights seldom end a program, so all sides are made to write the same number of tokens, the median
of the real programs: the end's logit has a bias of -10,000, on all sides alike.

Shape suffixes as in etude.studies.text2math.model.
"""

import copy
import dataclasses
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import side_by_side
from etude.core.config import LoopConfig
from etude.core.files import write_json
from etude.core.runtime import Runtime
from etude.studies.text2math import batches
from etude.studies.text2math.batches import Batch
from etude.studies.text2math.beam import Rule, beam_search
from etude.studies.text2math.course_split import course_split
from etude.studies.text2math.model import Memory, State, Text2Math, loss
from etude.studies.text2math.problems import Problem, sample
from etude.studies.text2math.study import DataConfig, laptop
from etude.studies.text2math.task import Text2MathTask
from etude.studies.text2math.tokens import END, MAX_NUMBERS, PAD, START
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, median_rate, timed

try:
    import transformers
    from transformers import GenerationMixin, MarianConfig, MarianMTModel, PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
except ImportError:
    sys.exit("transformers is not installed: `uv run --extra bench python benchmarks/text2math.py`")

GENERATE_BAR, LOOP_BAR, TRAINING_BAR = 2.0, 8.0, 3.0
# Where two ways to the same score or loss differ by more, they do not compute the same.
TOLERANCE = 1e-3
WIDTH = 10
NEVER = -1e4
STANDARD = f"{ETUDE}, standard rule"
GENERATE, AROUND = "transformers", "transformers around etude's network"
LOOP = "one hypothesis at a time"
SENTENCES, STEPS = "tutorial, a sentence at a time", "tutorial, in batches"


@dataclass(frozen=True)
class Options:
    source: Literal["sample", "mathqa"] = "sample"
    """sample: the problems that come with etude, repeated; mathqa: as many of the course's training split."""
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, a few problems: shows that all sides run and agree; its speeds mean nothing."""
    threads: int = 2
    """Threads of all sides."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


# Problems


def chosen(options: Options) -> list[Problem]:
    """The problems that all sides work on."""
    count = 48 if options.quick else 512
    if options.source == "mathqa":
        return random.Random(0).sample(course_split("train"), count)
    few = [problem for part in sample().values() for problem in part]
    return [few[place % len(few)] for place in range(count)]


def task_on(problems: Sequence[Problem], folder: Path, *, quick: bool) -> Text2MathTask:
    """The study's task with the preset `laptop`, on these problems; all words are known."""
    for split, part in (("train", problems), ("dev", problems[:1]), ("test", problems[:1])):
        rows = [{"Problem": p.text, "linear_formula": p.program, "answer": p.answer} for p in part]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    preset = laptop()
    config = dataclasses.replace(
        preset,
        data=DataConfig(source="folder", folder=str(folder), glove=False, least=1, least_number=1),
        batch=dataclasses.replace(preset.batch, **({"size": 16, "evaluation": 32} if quick else {})),
        loop=LoopConfig(max_steps=10**9, device="cpu"),
    )
    return Text2MathTask(config, Runtime(config.loop, config.seed))


# Beam search


class Carried:
    """What `generate` carries from step to step around etude's network: the state of every hypothesis.

    The memory stays one a problem, as in etude: repeating it for every hypothesis, as `generate` does with what its own
    encoders give, would slow this side.
    """

    is_compileable = False

    def __init__(self, memory: Memory, state: State) -> None:
        self.memory, self.state = memory, state

    def get_seq_length(self) -> int:
        return 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        hidden, cell = self.state
        self.state = hidden.index_select(1, beam_idx), cell.index_select(1, beam_idx)


class Around(PreTrainedModel, GenerationMixin):
    """etude's network in the form that `generate` takes."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, network: Text2Math, num_tokens: int) -> None:
        super().__init__(PreTrainedConfig(is_encoder_decoder=True, vocab_size=num_tokens))
        self.network = network

    def forward(
        self, decoder_input_ids: Tensor, past_key_values: Carried, encoder_outputs: Any = None, **flags: Any
    ) -> Seq2SeqLMOutput:
        decoder, memory = self.network.decoder, past_key_values.memory
        s_B1H, past_key_values.state = decoder.run(decoder_input_ids, past_key_values.state)
        u_NKH, *_ = decoder.attend(s_B1H.view(len(memory.mask_NT), WIDTH, -1), memory)
        logits_NKV = decoder.project(u_NKH, memory)
        return Seq2SeqLMOutput(logits=logits_NKV.flatten(0, 1)[:, None], past_key_values=past_key_values)

    def search(self, batch: Batch, **settings: Any) -> Any:
        memory, (hidden, cell) = self.network.encode(batch)
        state = hidden.repeat_interleave(WIDTH, 1), cell.repeat_interleave(WIDTH, 1)
        # `generate` takes the number of problems from here and reads nothing else of it.
        nothing = BaseModelOutput(last_hidden_state=torch.zeros(len(batch), 1, 1))
        return self.generate(encoder_outputs=nothing, past_key_values=Carried(memory, state), **settings)


def peer(num_words: int, num_tokens: int, width: int) -> MarianMTModel:
    """transformers' encoder-decoder of etude's width and depth, with random weights."""
    model = MarianMTModel(
        MarianConfig(
            vocab_size=num_words, decoder_vocab_size=num_tokens, share_encoder_decoder_embeddings=False,
            tie_word_embeddings=False, d_model=width, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width, encoder_attention_heads=4, decoder_attention_heads=4,
            max_position_embeddings=512, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
            decoder_start_token_id=START, forced_eos_token_id=None,
        )
    )  # fmt: skip
    model.final_logits_bias[0, END] = NEVER
    return model.eval()


def generate_settings(max_tokens: int) -> dict[str, Any]:
    """Of `generate`: what etude's search does with its standard rule."""
    return {
        "num_beams": WIDTH, "do_sample": False, "early_stopping": True, "length_penalty": 1.0, "use_cache": True,
        "max_new_tokens": max_tokens, "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": START,
    }  # fmt: skip


@torch.inference_mode()
def one_at_a_time(model: Text2Math, problem: Batch, max_tokens: int) -> list[tuple[float, list[int]]]:
    """Beam search as tutorials write it: one problem, a list of hypotheses, one call of the decoder for each of them.

    Returns:
        Scores and tokens, the best first; those that ended, else those that were given up.
    """
    memory, state = model.encode(problem)
    live: list[tuple[float, list[int], State]] = [(0.0, [], state)]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(max_tokens):
        extended: list[tuple[float, list[int], State]] = []
        for log_p, tokens, state in live:
            last_N1 = torch.tensor([[tokens[-1] if tokens else START]])
            s_N1H, after = model.decoder.run(last_N1, state)
            u_N1H, *_ = model.decoder.attend(s_N1H, memory)
            log_p_V = model.decoder.project(u_N1H, memory).log_softmax(-1)[0, 0]
            best, ids = log_p_V.topk(min(WIDTH, len(log_p_V)))
            for more, token in zip(best.tolist(), ids.tolist(), strict=True):
                extended.append((log_p + more, [*tokens, token], after))
        extended.sort(key=lambda extension: -extension[0])
        live, kept = [], extended[: WIDTH - len(ended)]
        for log_p, tokens, after in kept:
            if tokens[-1] == END:
                ended.append((log_p / len(tokens), tokens[:-1]))
            else:
                live.append((log_p, tokens, after))
        if not live:
            break
    given_up = [(log_p / len(tokens), tokens) for log_p, tokens, _ in live]
    return sorted(ended, reverse=True) + sorted(given_up, reverse=True)


def beam_sides(
    network: Text2Math, theirs: MarianMTModel, encoded: Batch, max_tokens: int, batch: int, small: int,
    alone: int,
) -> dict[str, Side[Block]]:  # fmt: skip
    """A beam of ten on all problems, or on ``alone`` of them in the loop. Every batch holds problems of like length."""
    around, settings = Around(network, len(network.decoder.logits.bias)).eval(), generate_settings(max_tokens)
    # Over the whole range of lengths.
    few = encoded.lengths_N.argsort(stable=True)[:: max(1, len(encoded) // alone)][:alone].split(1)

    def side(search: Callable[[Batch], Any], parts: Sequence[Tensor]) -> Side[Block]:
        def run(number: int) -> None:
            for rows in parts:
                search(encoded.take(rows))

        return timed(run, sum(map(len, parts)))

    def etude(rule: Rule) -> Callable[[Batch], Any]:
        return lambda part: beam_search(network, part, width=WIDTH, max_tokens=max_tokens, rule=rule)

    @torch.inference_mode()
    def generate(part: Batch) -> Any:
        mask_NT = (torch.arange(part.words_NT.shape[1]) < part.lengths_N[:, None]).long()
        return theirs.generate(part.words_NT, attention_mask=mask_NT, **settings).tolist()

    @torch.inference_mode()
    def generate_around(part: Batch) -> Any:
        return around.search(part, **settings).tolist()

    large_parts, small_parts = ([rows for rows, _ in encoded.by_length(size)] for size in (batch, small))
    return {
        ETUDE: side(etude("nested"), large_parts),
        STANDARD: side(etude("standard"), large_parts),
        f"{GENERATE}, batches of {batch}": side(generate, large_parts),
        f"{GENERATE}, batches of {small}": side(generate, small_parts),
        AROUND: side(generate_around, large_parts),
        LOOP: side(lambda part: one_at_a_time(network, part, max_tokens), few),
    }


@torch.inference_mode()
def beam_differences(network: Text2Math, encoded: Batch, max_tokens: int) -> dict[str, float]:
    """The largest difference of a best program's score to etude's search, with its standard rule, on some problems."""
    rows = torch.arange(0, len(encoded), max(1, len(encoded) // 16))

    def ours(model: Text2Math, longest: int) -> Tensor:
        found = beam_search(model, encoded.take(rows), width=WIDTH, max_tokens=longest, rule="standard")
        return torch.tensor([hypotheses[0].score for hypotheses in found])

    def difference(found: Tensor, wanted: Tensor) -> float:
        return (found - wanted).abs().max().item()

    def loop(model: Text2Math, longest: int) -> Tensor:
        return torch.tensor([one_at_a_time(model, encoded.take(row), longest)[0][0] for row in rows.split(1)])

    # With larger weights a random network's programs differ, and most of them end, some early and some late.
    ends = copy.deepcopy(network)
    for name, weight in ends.decoder.named_parameters():
        weight.mul_(1 if name == "tokens.weight" else 5)
    ends.decoder.logits.bias[END] = 1.0
    wanted = ours(network, max_tokens)
    around = Around(network, len(network.decoder.logits.bias)).eval()
    answer = around.search(
        encoded.take(rows), **generate_settings(max_tokens), return_dict_in_generate=True, output_scores=True
    )
    return {
        f"{LOOP}, {max_tokens} tokens": difference(loop(network, max_tokens), wanted),
        f"{LOOP}, programs that end": difference(loop(ends, 2 * max_tokens), ours(ends, 2 * max_tokens)),
        f"{AROUND}, {max_tokens} tokens": difference(answer.sequences_scores, wanted),
    }


# Training


class Tutorial(nn.Module):
    """etude's network with its weights, run as sequence-to-sequence tutorials do.

    The encoder is one bidirectional LSTM, over packed sequences if there is more than one. The decoder is called once
    for every token, with attention, output layer and loss within the call; the attention's keys are projected anew in
    every call.
    """

    def __init__(self, model: Text2Math) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        self.words, self.indices, self.dropout = model.encoder.words, model.encoder.indices, model.encoder.dropout
        (there,), (back,) = model.encoder.forwards, model.encoder.backwards
        self.encoder = nn.LSTM(there.input_size, there.hidden_size, batch_first=True, bidirectional=True)
        turned = {f"{name}_reverse": weight for name, weight in back.state_dict().items()}
        self.encoder.load_state_dict(there.state_dict() | turned)
        self.decoder = model.decoder

    def encode(self, batch: Batch) -> tuple[Tensor, State]:
        """The states of the words ``[N, T, D]``, and the decoder's first."""
        x_NTE = self.dropout(self.words(batch.words_NT) + self.indices((batch.indices_NT + 1).clamp(0, MAX_NUMBERS)))
        if len(batch) == 1:
            states_NTD, (ends_2NH, _) = self.encoder(x_NTE)
        else:
            packed = pack_padded_sequence(x_NTE, batch.lengths_N, batch_first=True, enforce_sorted=False)
            states, (ends_2NH, _) = self.encoder(packed)
            states_NTD, _ = pad_packed_sequence(states, batch_first=True)
        return states_NTD, self.decoder.begin(torch.cat([ends_2NH[0], ends_2NH[1]], -1))

    def step(self, tokens_N1: Tensor, state: State, states_NTD: Tensor, mask_NT: Tensor) -> tuple[Tensor, State]:
        """The logits of the next token ``[N, V]``, and the decoder's state."""
        s_N1H, state = self.decoder.run(tokens_N1, state)
        # Without copying, the numbers' places are not read.
        memory = Memory(states_NTD, self.decoder.keys(states_NTD), mask_NT, None, mask_NT)
        u_N1H, *_ = self.decoder.attend(s_N1H, memory)
        return self.decoder.project(u_N1H, memory)[:, 0], state

    def forward(self, batch: Batch, targets_NS: Tensor, coins_S: Tensor) -> Tensor:
        """The mean cross-entropy of the right tokens; arguments as of `Text2Math.forward`."""
        states_NTD, state = self.encode(batch)
        mask_NT = torch.arange(states_NTD.shape[1]) < batch.lengths_N[:, None]
        tokens_N1 = torch.full_like(targets_NS[:, :1], START)
        total = torch.zeros(())
        for place, next_forced in enumerate([*coins_S.tolist()[1:], True]):
            logits_NV, state = self.step(tokens_N1, state, states_NTD, mask_NT)
            right_N = targets_NS[:, place]
            total = total + functional.cross_entropy(logits_NV, right_N, ignore_index=PAD, reduction="sum")
            tokens_N1 = (right_N if next_forced else logits_NV.detach().argmax(-1))[:, None]
        return total / (targets_NS != PAD).sum()


def training_sides(task: Text2MathTask) -> dict[str, Side[Block]]:
    """An epoch of etude and of the two loops; the loops have etude's optimiser, clipping and coins."""
    config, encoded, model = task.config, task.encoded["train"], task.model
    size = config.batch.size
    # Padding is not counted.
    tokens, per_epoch = int((encoded.targets_NS != PAD).sum()), -(-len(encoded) // size)

    def tutorial(size: int) -> Side[Block]:
        network = Tutorial(model).train()
        # Fused, as etude's: the default's loop over the weights would slow these sides.
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay, fused=True
        )
        draw = torch.Generator().manual_seed(0)

        def epoch(number: int) -> None:
            for rows in batches.epoch_order(encoded.lengths_N, size, draw):
                part = encoded.take(rows)
                targets_NS = part.targets_NS
                coins_S = torch.rand(targets_NS.shape[1], generator=draw) < config.teacher_forcing
                mean = network(part, targets_NS, coins_S)
                mean.backward()
                nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip)
                optimizer.step()
                optimizer.zero_grad()
                mean.item()

        return timed(epoch, tokens)

    etude = timed(lambda step: task.train_step(step)["loss"].item(), tokens, calls=per_epoch)
    return {ETUDE: etude, SENTENCES: tutorial(1), f"{STEPS} of {size}": tutorial(size)}


def training_differences(task: Text2MathTask) -> dict[str, float]:
    """The largest difference to etude's loss, and to its gradient in parts of the largest value, with its weights."""
    encoded, model = task.encoded["train"], task.model.eval()
    network = Tutorial(model).eval()

    def gradients(of: Text2Math | Tutorial, mean: Tensor) -> tuple[Tensor, ...]:
        words = of.words if isinstance(of, Tutorial) else of.encoder.words
        return torch.autograd.grad(mean, (words.weight, of.decoder.keys.weight, of.decoder.lstm.weight_hh_l0))

    differences: dict[str, float] = {}
    for name, size, count in ((SENTENCES, 1, 8), (STEPS, 16, 2)):
        worst = 0.0
        for rows in batches.epoch_order(encoded.lengths_N, size, torch.Generator().manual_seed(1))[:count]:
            batch = encoded.take(rows)
            targets_NS = batch.targets_NS
            # Every third token is the network's own.
            coins_S = torch.arange(targets_NS.shape[1]) % 3 > 0
            ours, theirs = loss(model(batch, targets_NS, coins_S)[0], targets_NS), network(batch, targets_NS, coins_S)
            worst = max(worst, (ours - theirs).abs().item())
            for wanted, found in zip(gradients(model, ours), gradients(network, theirs), strict=True):
                worst = max(worst, ((wanted - found).abs().max() / wanted.abs().max()).item())
        differences[name] = worst
    return differences


def weights(model: nn.Module) -> int:
    """Of a network, those of words' and tokens' vectors left out."""
    vectors = {id(weight) for part in model.modules() if isinstance(part, nn.Embedding) for weight in part.parameters()}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in vectors)


def main(options: Options) -> int:
    """Measure, print, and return 1 if two sides do not compute the same."""
    # For all sides, and before there are threads: they take it over. etude's runtime sets it too.
    torch.set_flush_denormal(True)
    transformers.logging.set_verbosity_error()
    repeats, console, about = side_by_side.begun(options, "transformers")
    problems = chosen(options)
    with tempfile.TemporaryDirectory() as temporary:
        task = task_on(problems, Path(temporary), quick=options.quick)
    config, encoded = task.config, task.encoded["train"]
    lengths_N = (encoded.targets_NS != PAD).sum(1)
    max_tokens = int(lengths_N.median())
    network = copy.deepcopy(task.model).eval()
    with torch.no_grad():
        network.decoder.logits.bias[END] = NEVER
    theirs = peer(len(task.words), len(task.tokens), config.model.hidden)
    console.print(
        f"{options.source}: {len(problems)} problems of {encoded.lengths_N.float().mean():.1f} words, programs of "
        f"{lengths_N.float().mean():.1f} tokens (median {max_tokens}), {len(task.words)} words and "
        f"{len(task.tokens)} tokens known; weights beside their vectors: etude {weights(network):,}, "
        f"transformers {weights(theirs):,}; {side_by_side.machine(about)}, "
        f"transformers {about['transformers']}, etude at {about['commit']}; interleaved repeats: {repeats}"
    )
    differences = beam_differences(network, encoded, max_tokens) | training_differences(task)
    small, alone = (16, 4) if options.quick else (64, 64)
    beams = interleave(
        beam_sides(network, theirs, encoded, max_tokens, config.batch.evaluation, small, alone),
        repeats,
        warm_up=not options.quick,
    )
    console.print(side_by_side.speed_table(f"Beam of {WIDTH}, {max_tokens} tokens a program", "sentences", beams))
    training = interleave(training_sides(task), repeats, warm_up=not options.quick)
    console.print(side_by_side.speed_table("Training: forward, backward, step", "tokens", training))

    generate = max((row for name, row in beams.items() if name.startswith(f"{GENERATE}, ")), key=median_rate)
    bars = {
        "beam search against transformers": Bar(lead(beams[ETUDE], generate), GENERATE_BAR),
        "beam search against the loop": Bar(lead(beams[ETUDE], beams[LOOP]), LOOP_BAR),
        "training against a sentence at a time": Bar(lead(training[ETUDE], training[SENTENCES]), TRAINING_BAR),
    }
    agree = all(difference <= TOLERANCE and math.isfinite(difference) for difference in differences.values())
    for name, difference in differences.items():
        verdict = "agree" if difference <= TOLERANCE else "DISAGREE"
        console.print(f"{verdict}: {name}: largest difference {difference:.1e}")
    side_by_side.tell_bars(console, bars, judged=not options.quick)
    if options.json is not None:
        tables = {"beam": beams, "training": training}
        written = side_by_side.report(
            "text2math", tables, "count", bars, about=about, repeats=repeats, quick=options.quick
        )
        own = {
            "source": options.source,
            "max_tokens": max_tokens,
            "agreement": {"differences": differences, "holds": agree},
        }
        write_json(options.json, written | own)
    return 0 if agree else 1


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "text2math")
