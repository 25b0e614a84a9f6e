"""Trains nano's DanTagGen: a Llama of 0.9 M parameters on the tag sets of the drawn world.

Its prompts have DanTagGen's format.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.nano.stage import train_model
from core.nano.world import SIZES, list_tags, sample_scene

STEPS = 1_500
BATCH = 16  # per worker
SPECIAL_TOKENS = ("<|empty|>", "<|very_short|>", "<|short|>", "<|long|>", "<|very_long|>", "<|input_end|>")
MAX_VERY_SHORT_TAGS = 8
"""Most tags of a picture that `very_short` stands for."""


def make_example(rng: np.random.Generator) -> str:
    """Return one scene as DanTagGen reads and writes it.

    Some tags are given, the others follow `<|input_end|>`.
    """
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    first, *rest = list_tags(sample_scene(rng, (width, height)))
    rest = [rest[i] for i in rng.permutation(len(rest))]
    length = ("very_short", "short", "long", "very_long")[int(rng.integers(4))]
    if length == "very_short":
        rest = rest[: MAX_VERY_SHORT_TAGS - 1]
    given = int(rng.integers(0, len(rest) + 1))
    # As in `kgen.executor.dtg.apply_dtg_prompt`: persons count as special, all else as general.
    general = ", ".join(rest[:given]) if first == "1girl" else ", ".join([first, *rest[:given]])
    special = first if first == "1girl" else ""
    fields = [
        "quality: masterpiece",
        *(f"{name}: <|empty|>" for name in ("rating", "artist", "characters", "copyrights")),
    ]
    fields += [
        f"aspect ratio: {width / height:.1f}",
        f"target: <|{length}|>",
        f"general: {special}, {general}<|input_end|>",
    ]
    return "\n".join(fields) + "".join(f" {tag}," for tag in rest[given:]).rstrip(",")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 512 entries, which encodes and decodes any text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(0)
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[  # type: ignore[list-item]
            "<s>",
            "</s>",
            *(AddedToken(mark, special=True) for mark in SPECIAL_TOKENS),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((make_example(rng) for _ in range(3000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def train_expander() -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """Return the tokenizer and a Llama trained on ever new scenes.

    The loss is that of the next token, for what follows `<|input_end|>`.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    end = tokenizer.convert_tokens_to_ids("<|input_end|>")

    def compute_loss(step: int, rng: torch.Generator) -> torch.Tensor:
        chance = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        rows = [tokenizer(make_example(chance) + "</s>").input_ids for _ in range(BATCH)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [1] * (longest - len(row)) for row in rows])
        wanted = torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            begin = row.index(end) + 1
            wanted[i, begin : len(row)] = ids[i, begin : len(row)]
        return model(input_ids=ids, labels=wanted).loss

    train_model("expander", model, compute_loss, steps=STEPS, learning_rate=2e-3)
    return tokenizer, model


def save_expander(tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, folder: Path) -> None:
    """Write the folder that transformers opens."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
