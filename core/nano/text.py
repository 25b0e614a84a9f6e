"""Trains nano's tokenizer and both text encoders: CLIP's shapes, small.

The encoders learn what a picture model needs of them, before there is one: the pooled vector
holds the set of tags, each token's state holds its own word and, on a tag's last word, the tag
(so that 'blue' in 'blue hair, red eyes' belongs to the hair).
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core.nano.pictures import COUNTS, scene
from core.nano.stage import fit
from core.nano.world import TAGS, caption

STEPS = 1_000
BATCH = 16  # a worker
POOLED = 96
"""Width of the pooled vector, as 1280 in SDXL."""

OTHER_WORDS = "masterpiece best quality lowres error worst jpeg artifacts watermark signature username very aesthetic absurdres newest solo"
"""Words beside the world's tags that are one token each."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level BPE with one token for each word of the world; any other text falls to bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({word for tag in TAGS for word in tag.split()} | set(OTHER_WORDS.split()))
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.train_from_iterator([[word] for word in words], trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), BOS, EOS]
    vocabulary = list(dict.fromkeys(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77, unk_token=EOS, bos_token=BOS, eos_token=EOS, pad_token=EOS
    )


def shapes(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Untrained encoders: 3 layers, 64 and 96 wide, as CLIP-L and OpenCLIP-G stand in SDXL."""
    common = {
        "vocab_size": len(tokenizer), "num_hidden_layers": 3, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    first = CLIPTextModel(CLIPTextConfig(hidden_size=64, intermediate_size=256, num_attention_heads=4, projection_dim=64, **common))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=96, intermediate_size=384, num_attention_heads=6, projection_dim=POOLED, **common))
    return first, second


class Reader(torch.nn.Module):
    """Both encoders with the linear heads that ask them what they understood; the heads are thrown away."""

    def __init__(self, first: CLIPTextModel, second: CLIPTextModelWithProjection, words: int):
        super().__init__()
        self.first, self.second = first, second
        self.set_of_pooled = torch.nn.Linear(POOLED, len(TAGS))
        self.word_of_state = torch.nn.ModuleList([torch.nn.Linear(width, words) for width in (64, 96)])
        self.tag_of_state = torch.nn.ModuleList([torch.nn.Linear(width, len(TAGS)) for width in (64, 96)])

    def forward(self, ids: torch.Tensor, tag_at: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Loss of ids (n, 77), the tag that ends at each token or -100 (n, 77), the set of tags (n, tags)."""
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids, output_hidden_states=True)
        loss = 10 * F.binary_cross_entropy_with_logits(self.set_of_pooled(two.text_embeds), present)
        for out, words, tag in zip((one, two), self.word_of_state, self.tag_of_state, strict=True):
            state = out.hidden_states[-2]
            loss = loss + 0.3 * F.cross_entropy(words(state).flatten(0, 1), ids.flatten())
            loss = loss + F.cross_entropy(tag(state).flatten(0, 1), tag_at.flatten())
        return loss


def train(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel, CLIPTextModelWithProjection]:
    """Make the tokenizer in `folder`, train both encoders on captions of the world."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    first, second = shapes(tokenizer)
    reader = Reader(first, second, len(tokenizer))

    @cache
    def length(tag: str) -> int:
        return len(tokenizer(tag).input_ids) - 2

    def loss_of(step: int, rng: torch.Generator) -> torch.Tensor:
        chance = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        texts = []
        for i in torch.randint(COUNTS[128, 128], (BATCH,), generator=rng).tolist():
            said = caption(scene(i, (128, 128)), chance).split(", ")
            if chance.random() < 0.15:  # unknown words push the tags to places that short prompts never reach
                for _ in range(int(chance.integers(1, 12))):
                    said.insert(int(chance.integers(len(said) + 1)), "".join(chance.choice(list("abcdefghijklmnopqrstuvwxyz"), 3)))
            texts.append(said)
        whole = step % 5 == 0  # now and then all 77 places; short rows are quicker
        ids = tokenizer([", ".join(said) for said in texts], padding="max_length" if whole else "longest", truncation=True, return_tensors="pt").input_ids
        tag_at = torch.full_like(ids, -100)
        present = torch.zeros(len(texts), len(TAGS))
        for row, said in enumerate(texts):
            end = 0
            for tag in said:
                end += length(tag)
                if tag in TAGS and end < 76:
                    tag_at[row, end] = TAGS.index(tag)
                    present[row, TAGS.index(tag)] = 1
                end += 1  # the comma
        return reader(ids, tag_at, present)

    fit("text", reader, loss_of, steps=STEPS, rate=2e-3)
    return tokenizer, first, second
