"""Prompts to embeddings, against diffusers' `encode_prompt`."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.models import bases
from core.prompts import conditioning
from core.prompts.grammar import CHUNK_LENGTH
from core.schema.errors import UserError
from core.schema.types import Request

REQUEST = Request(
    model="nano",
    prompt="1girl, smile",
    negative="low quality",
    width=128,
    height=128,
    steps=4,
    cfg=5.0,
    sampler="Euler a",
    seed=7,
)


@pytest.fixture(scope="module")
def nano():
    with torch.no_grad():
        yield bases.load_model("nano")


def encode_prompt(pipeline, prompt: str) -> conditioning.Conditioning:
    return conditioning.encode_texts(pipeline, [conditioning.resolve_prompt(prompt)])


@pytest.mark.parametrize(
    "prompt", ["1girl, blue hair, smile", "", "日本語", r"arona \(blue archive\), halo", "(a)(b)", "a, " * 30]
)
def test_case_03_a_plain_prompt_is_diffusers_own(nano, prompt: str) -> None:
    plain = prompt.replace("\\", "").replace("(a)(b)", "ab")
    theirs, _, pooled, _ = nano.encode_prompt(plain, do_classifier_free_guidance=False)
    ours = encode_prompt(nano, prompt if "(a)" not in prompt else plain)
    assert (ours.states - theirs).abs().max() <= 1e-5
    assert (ours.pooled - pooled).abs().max() <= 1e-5


WORDS = [
    "1girl",
    "blue hair",
    r"arona \(blue archive\)",
    "halo",
    "long hair",
    "no humans",
    "simple background",
    "日本",
    "x",
]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(WORDS), max_size=30).map(", ".join))
def test_case_03_so_is_any_of_75_tokens_with_its_negative(nano, prompt: str) -> None:
    while conditioning.count_tokens(nano.tokenizer, prompt) > CHUNK_LENGTH:
        prompt = prompt.rpartition(", ")[0]
    plain = prompt.replace("\\", "")
    theirs, negative, pooled, negative_pooled = nano.encode_prompt(
        plain, negative_prompt="low quality", do_classifier_free_guidance=True
    )
    ours = conditioning.encode_requests(nano, [replace(REQUEST, prompt=prompt)], guided=True)(1)
    assert (ours.states - torch.cat([negative, theirs])).abs().max() <= 1e-5
    assert (ours.pooled - torch.cat([negative_pooled, pooled])).abs().max() <= 1e-5


def test_case_03_so_is_one_of_exactly_75_tokens(nano) -> None:
    prompt = ", ".join(["x"] * 38)
    assert conditioning.count_tokens(nano.tokenizer, prompt) == CHUNK_LENGTH
    theirs, _, pooled, _ = nano.encode_prompt(prompt, do_classifier_free_guidance=False)
    for said in (prompt, f"({prompt}:1)", f"({prompt}:1.0)"):
        assert (encode_prompt(nano, said).states - theirs).abs().max() <= 1e-5
        assert (encode_prompt(nano, said).pooled - pooled).abs().max() <= 1e-5


def test_a_weight_scales_its_words_and_keeps_the_mean(nano) -> None:
    plain, heavy = encode_prompt(nano, "blue hair, smile"), encode_prompt(nano, "(blue hair:1.5), smile")
    words = len(nano.tokenizer("blue hair", add_special_tokens=False).input_ids)
    for part in (slice(0, 64), slice(64, None)):  # each encoder has its own mean
        ratio = (heavy.states / plain.states)[0, :, part].mean(-1)
        assert torch.allclose(ratio[1 : 1 + words], 1.5 * ratio[:1].expand(words), rtol=1e-3)
        assert torch.allclose(heavy.states[..., part].mean(), plain.states[..., part].mean(), rtol=1e-3)
    assert torch.equal(heavy.pooled, plain.pooled), "the pooled vector has no weights"
    assert torch.equal(encode_prompt(nano, "(blue hair:1), smile").states, plain.states)


def test_a_long_prompt_is_its_chunks_one_after_the_other(nano) -> None:
    tags = [
        f"{colour} {thing}"
        for colour in ("blue", "red", "green", "pink", "white")
        for thing in ("hair", "eyes", "halo", "sky")
    ]
    long = ", ".join(tags * 3)
    made = conditioning.split_chunks(nano.tokenizer, conditioning.resolve_prompt(long))
    assert len(made) > 1
    comma = nano.tokenizer(",", add_special_tokens=False).input_ids[-1]
    assert all(chunk.ids[-1] == comma for chunk in made[:-1]), "a chunk ends at a comma, not within a tag"
    assert [token for chunk in made for token in chunk.ids] == nano.tokenizer(
        long, add_special_tokens=False, verbose=False
    ).input_ids
    whole = encode_prompt(nano, long)
    parts = [encode_prompt(nano, nano.tokenizer.decode(chunk.ids)) for chunk in made]
    assert (whole.states - torch.cat([part.states for part in parts], dim=1)).abs().max() <= 1e-5
    assert (whole.pooled - parts[0].pooled).abs().max() <= 1e-5, "the pooled vector is the first chunk's"


def test_break_begins_a_chunk(nano) -> None:
    apart = encode_prompt(nano, "blue hair BREAK smile")
    assert apart.states.shape[1] == 2 * 77
    assert torch.equal(apart.states[:, 77:], encode_prompt(nano, "smile").states)


def test_tokens_count_what_is_read(nano) -> None:
    assert conditioning.count_tokens(nano.tokenizer, "") == 0
    assert conditioning.count_tokens(nano.tokenizer, "(smile:1.3) <lora:a:2>") == conditioning.count_tokens(
        nano.tokenizer, "smile"
    )
    assert conditioning.count_tokens(
        nano.tokenizer, "smile BREAK smile"
    ) == CHUNK_LENGTH + conditioning.count_tokens(nano.tokenizer, "smile")


def test_each_step_says_its_own(nano) -> None:
    at = conditioning.encode_requests(
        nano, [replace(REQUEST, prompt="[smile:frown:0.5], (1girl)")], guided=True
    )
    assert torch.equal(at(2).states[1], encode_prompt(nano, "smile, (1girl)").states[0])
    assert torch.equal(at(3).states[1], encode_prompt(nano, "frown, (1girl)").states[0])
    assert torch.equal(at(3).states[0], encode_prompt(nano, "low quality").states[0]), (
        "the negative comes first"
    )


# Which of the words each call of the model gets, from A1111's `reconstruct_cond_batch`, which counts from 0.
@pytest.mark.parametrize(
    ("prompt", "sampler", "by_call"),
    [
        ("[smile:frown:2]", "Euler", "aaab"),
        ("[smile|frown]", "Euler", "aabab"),
        ("[smile:frown:2]", "Heun", "aaabbbbb"),
        ("[smile:frown:0.5]", "Heun", "aaaaabbb"),
    ],
)
def test_a_prompt_changes_at_the_calls_of_a1111(nano, prompt: str, sampler: str, by_call: str) -> None:
    at = conditioning.encode_requests(nano, [replace(REQUEST, prompt=prompt, sampler=sampler)], guided=False)
    words = {"a": encode_prompt(nano, "smile").states, "b": encode_prompt(nano, "frown").states}
    said = [
        next(name for name in words if torch.equal(at(i).states, words[name])) for i in range(len(by_call))
    ]
    assert "".join(said[: len(by_call)]) == by_call


def test_a_request_does_not_depend_on_its_company(nano) -> None:
    one, other = REQUEST, replace(REQUEST, prompt="(no humans:1.4), apple")
    together, alone = (
        conditioning.encode_requests(nano, [one, other], guided=True)(1),
        conditioning.encode_requests(nano, [other], guided=True)(1),
    )
    assert torch.equal(together.states[[1, 3]], alone.states)
    assert torch.equal(together.pooled[[1, 3]], alone.pooled)


@settings(deadline=None, max_examples=40)
@given(prompt=st.text(max_size=300))
def test_case_02_any_text_has_finite_embeddings(nano, prompt: str) -> None:
    made = encode_prompt(nano, prompt)
    assert torch.isfinite(made.states).all()
    assert torch.isfinite(made.pooled).all()


@pytest.mark.parametrize(
    "prompt", ["BREAK a " * 100, "[" + "|".join(map(str, range(200))) + "]" + " BREAK a" * 9]
)
def test_a_prompt_that_would_fill_the_memory_is_refused(nano, prompt: str) -> None:
    with pytest.raises(UserError, match=r"prompt: .* limit is"):
        conditioning.encode_requests(nano, [replace(REQUEST, prompt=prompt, steps=150)], guided=True)


def test_a_break_at_the_end_begins_nothing(nano) -> None:
    assert (
        len(conditioning.split_chunks(nano.tokenizer, conditioning.resolve_prompt("smile BREAK <lora:a:1>")))
        == 1
    )
