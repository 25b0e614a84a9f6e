"""Trains nano's tokenizer and both text encoders: CLIP's shapes, small.

The encoders learn what a picture model needs of them, before there is one: the pooled vector holds
the set of tags, each token's state holds its own word and, on a tag's last word, the tag (so that
'blue' in 'blue hair, red eyes' belongs to the hair).
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core.nano.pictures import PICTURE_COUNTS, make_scene
from core.nano.stage import train_model
from core.nano.world import TAGS, write_caption

STEPS = 1_000
BATCH = 16  # per worker
POOLED_WIDTH = 96
"""Width of the pooled vector; 1280 in SDXL."""

OTHER_WORDS = (
    "masterpiece best quality lowres error worst jpeg artifacts watermark signature "
    "username very aesthetic absurdres newest solo"
)
"""Words beside the world's tags that are one token each."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return CLIP's byte-level BPE with one token for each word of the world, saved in `folder`.

    Any other text is split into bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({word for tag in TAGS for word in tag.split()} | set(OTHER_WORDS.split()))
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.train_from_iterator(
        [[word] for word in words],
        trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
        *("".join(pair) for pair in merges),
        BOS,
        EOS,
    ]
    vocabulary = list(dict.fromkeys(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False)
    )
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n"
    )
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=77,
        unk_token=EOS,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
    )


def make_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Return untrained encoders: 3 layers, 64 and 96 wide.

    They stand for SDXL's CLIP-L and OpenCLIP-G.
    """
    common = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    first = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=64, intermediate_size=256, num_attention_heads=4, projection_dim=64, **common
        )
    )
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=96,
            intermediate_size=384,
            num_attention_heads=6,
            projection_dim=POOLED_WIDTH,
            **common,
        )
    )
    return first, second


class TextProbe(torch.nn.Module):
    """Both encoders with linear heads that read what they understood; the heads are thrown away."""

    def __init__(self, first: CLIPTextModel, second: CLIPTextModelWithProjection, words: int):
        super().__init__()
        self.first, self.second = first, second
        self.set_of_pooled = torch.nn.Linear(POOLED_WIDTH, len(TAGS))
        self.word_of_state = torch.nn.ModuleList([torch.nn.Linear(width, words) for width in (64, 96)])
        self.tag_of_state = torch.nn.ModuleList([torch.nn.Linear(width, len(TAGS)) for width in (64, 96)])

    def forward(self, ids: torch.Tensor, tag_at: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return the loss of `ids` (n, 77).

        `tag_at` (n, 77) is the tag that ends at each token, or -100; `present` (n, tags) the set of
        tags.
        """
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids, output_hidden_states=True)
        loss = 10 * F.binary_cross_entropy_with_logits(self.set_of_pooled(two.text_embeds), present)
        for out, words, tag in zip((one, two), self.word_of_state, self.tag_of_state, strict=True):
            state = out.hidden_states[-2]
            loss = loss + 0.3 * F.cross_entropy(words(state).flatten(0, 1), ids.flatten())
            loss = loss + F.cross_entropy(tag(state).flatten(0, 1), tag_at.flatten())
        return loss


def train_text_encoders(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel, CLIPTextModelWithProjection]:
    """Make the tokenizer in `folder`, and train both encoders on captions of the world."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    first, second = make_text_encoders(tokenizer)
    reader = TextProbe(first, second, len(tokenizer))

    @cache
    def count_tokens(tag: str) -> int:
        return len(tokenizer(tag).input_ids) - 2

    def compute_loss(step: int, rng: torch.Generator) -> torch.Tensor:
        chance = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        texts = []
        for i in torch.randint(PICTURE_COUNTS[128, 128], (BATCH,), generator=rng).tolist():
            said = write_caption(make_scene(i, (128, 128)), chance).split(", ")
            # Unknown words push the tags to positions that short prompts never reach.
            if chance.random() < 0.15:
                for _ in range(int(chance.integers(1, 12))):
                    said.insert(
                        int(chance.integers(len(said) + 1)),
                        "".join(chance.choice(list("abcdefghijklmnopqrstuvwxyz"), 3)),
                    )
            texts.append(said)
        whole = step % 5 == 0  # all 77 positions now and then; short rows are quicker
        ids = tokenizer(
            [", ".join(said) for said in texts],
            padding="max_length" if whole else "longest",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        tag_at = torch.full_like(ids, -100)
        present = torch.zeros(len(texts), len(TAGS))
        for row, said in enumerate(texts):
            end = 0
            for tag in said:
                end += count_tokens(tag)
                if tag in TAGS and end < 76:
                    tag_at[row, end] = TAGS.index(tag)
                    present[row, TAGS.index(tag)] = 1
                end += 1  # the comma
        return reader(ids, tag_at, present)

    train_model("text", reader, compute_loss, steps=STEPS, learning_rate=2e-3)
    return tokenizer, first, second
