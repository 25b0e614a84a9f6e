"""Embeddings in prompts: found by their names, in place of tokens, and gone afterwards."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from core.models import bases
from core.prompts import conditioning, embeddings
from core.prompts.embeddings import find_mentions, get_embedding
from core.prompts.grammar import CHUNK_LENGTH
from core.schema.errors import UserError
from core.schema.types import EmbeddingUse
from core.system.tensor_files import calculate_sha256
from tests.prompts.test_conditioning import REQUEST

WIDTHS = (64, 96)
SDXL_WIDTHS = (768, 1280)


def write_embedding(file: Path, length: int = 3, widths: tuple[int, int] = WIDTHS, seed: int = 0) -> Path:
    """Write an embedding as A1111's trainers do, for nano unless other widths are given."""
    rng = torch.Generator().manual_seed(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = zip(("clip_l", "clip_g"), widths, strict=True)
    save_file({key: torch.randn(length, width, generator=rng) * 0.05 for key, width in parts}, file)
    return file


def use_embedding(file: Path) -> EmbeddingUse:
    return EmbeddingUse(word=file.stem, path=str(file), sha256=calculate_sha256(file))


@pytest.fixture(scope="module")
def nano():
    with torch.no_grad():
        yield bases.load_model("nano")


@pytest.fixture
def use(tmp_path: Path) -> EmbeddingUse:
    return use_embedding(write_embedding(tmp_path / "Bad-Hands5.safetensors"))


def encode(pipeline, prompt: str, *uses: EmbeddingUse) -> conditioning.Conditioning:
    return conditioning.encode_texts(pipeline, [conditioning.resolve_prompt(prompt, uses)])


def list_hooks(pipeline) -> list:
    layers = (each.get_input_embeddings() for each in (pipeline.text_encoder, pipeline.text_encoder_2))
    return [hook for layer in layers for hook in layer._forward_hooks.values()]


@pytest.mark.parametrize(
    "prompt", ["1girl, {0}, smile", "{0}", "smile {0} {0}", "a, " * 37 + "{0}, smile", "blue hair BREAK {0}"]
)
def test_the_states_are_those_of_a_vocabulary_with_the_vectors_in_it(
    nano, tmp_path: Path, prompt: str
) -> None:
    """The oracle is diffusers' way: new tokens, whose rows of a resized table are the vectors."""
    use = use_embedding(write_embedding(tmp_path / "zzq.safetensors"))
    ours = encode(nano, prompt.format("ZZQ"), use)
    states, pooled = [], torch.empty(0)
    both = ((nano.tokenizer, nano.text_encoder), (nano.tokenizer_2, nano.text_encoder_2))
    for number, (tokenizer, encoder) in enumerate(both):
        vectors = get_embedding(use).vectors[number]
        own, many = encoder.get_input_embeddings().weight.detach().clone(), encoder.config.vocab_size
        twin = deepcopy(encoder)
        twin.resize_token_embeddings(many + len(vectors))
        with torch.no_grad():
            twin.get_input_embeddings().weight[many:] = vectors
        rows, row = [], []
        for part in prompt.split("BREAK"):
            for place, text in enumerate(part.split("{0}")):
                row += list(range(many, many + len(vectors))) if place else []
                row += tokenizer(text, add_special_tokens=False).input_ids
            rows, row = [*rows, row], []
        # The embedding is not divided: it begins the second chunk.
        rows = [part for row in rows for part in ([row[:74], row[74:]] if len(row) > 75 else [row])]
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = torch.tensor([[start, *row, *[end] * (76 - len(row))] for row in rows])
        out = twin(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2].flatten(0, 1))
        pooled = out[0][0]
        assert torch.equal(encoder.get_input_embeddings().weight, own)
        assert encoder.get_input_embeddings().num_embeddings == many, "the model's vocabulary has grown"
    assert (ours.states[0] - torch.cat(states, dim=-1)).abs().max() <= 1e-6
    assert (ours.pooled[0] - pooled).abs().max() <= 1e-6


NAMES = ("EasyNegative", "easy", "bad hands", "style", "bad-X_v2", "smile", "foo (v1)", "日本")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("1girl, easynegative, smile", ["EasyNegative", "smile"]),
        ("EASYNEGATIVE", ["EasyNegative"]),
        ("easynegatives, uneasy, smiles, xsmile", []),
        ("(bad hands:1.2), [style]", ["bad hands", "style"]),
        ("bad  hands", ["bad hands"]),
        ("bad-x_v2.", ["bad-X_v2"]),
        (r"foo \(v1\), 日本", ["foo (v1)", "日本"]),
        ("[style:smile:0.5] [easy|x]", ["style", "smile", "easy"]),
        ("<lora:style:1>", []),
        ("embedding:EasyNegative, x", ["EasyNegative"]),
        ("(embedding:bad hands:1.3)", ["bad hands"]),
        ("embedding:sub/style.safetensors smile", ["style", "smile"]),
        ("embedding:style2, embedding:gone", [None, None]),
        ("embedding: a jewel", []),
    ],
)
def test_a_name_is_found_as_a_word(prompt: str, words: list[str | None]) -> None:
    assert [mention.word for mention in find_mentions(prompt, NAMES)] == words


@pytest.mark.parametrize(
    "prompt",
    [
        "1girl, easynegative, smile. bad hands!?",
        "Bad-X_V2,bad hands;style(smile)",
        "it's a style, smiles, smile2 日本 easy",
        "unstyled, easynegativex, 2smile",
    ],
)
def test_names_are_found_where_a1111_finds_them_among_clips_tokens(prompt: str) -> None:
    """A1111 compares the ids of a name with those of the prompt, and takes the longest.

    Only what is a name by accident of the vocabulary, as `style` in `restyle`, is none here.
    """
    tokenizer = CLIPTokenizer.from_pretrained("core/models/sdxl/tokenizer", local_files_only=True)

    def tokenize(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    ids, found, place = tokenize(prompt), [], 0
    names = sorted(((name, tokenize(name)) for name in NAMES), key=lambda each: -len(each[1]))
    while place < len(ids):
        name, own = next((each for each in names if ids[place:][: len(each[1])] == each[1]), (None, [0]))
        found += [name] if name else []
        place += len(own)
    assert [mention.word for mention in find_mentions(prompt, NAMES)] == found


def test_names_in_a_prompt_that_changes_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of 150 steps anew, checking one long prompt took half a minute of a Space's processor."""
    read, places = embeddings._read_comfyui_name, list[int]()
    monkeypatch.setattr(
        embeddings,
        "_read_comfyui_name",
        lambda text, start, names: places.append(start) or read(text, start, names),
    )
    own = EmbeddingUse(word="a", path="a.safetensors", sha256="0" * 64)
    steps = conditioning.resolve_steps("[x:y:0.5] " + "embedding:a, " * 100, 150, embeddings=(own,))
    assert (len(steps), len(set(steps))) == (150, 2)
    assert 100 <= len(places) <= 200


def test_a_prompt_that_names_none_stays_as_it_is(nano, use: EmbeddingUse) -> None:
    prompt = r"1girl, (blue hair:1.2), arona \(blue archive\), it's [a|b] BREAK 日本"
    assert torch.equal(encode(nano, prompt, use).states, encode(nano, prompt).states)
    assert conditioning.resolve_prompt("smile, hands") == conditioning.resolve_prompt("smile, hands", [])


def test_what_is_not_there_is_not_read_as_words(nano, use: EmbeddingUse) -> None:
    assert torch.equal(encode(nano, "smile embedding:gone", use).states, encode(nano, "smile").states)


def test_a_weight_is_that_of_each_of_its_tokens(nano, use: EmbeddingUse) -> None:
    (chunk,) = conditioning.split_chunks(
        nano.tokenizer, conditioning.resolve_prompt("smile (bad-hands5:1.4)", [use])
    )
    assert chunk.weights == [1.0, 1.4, 1.4, 1.4]
    assert chunk.embeddings == [(1, use)]
    assert not torch.equal(
        encode(nano, "(bad-hands5:1.4)", use).states, encode(nano, "bad-hands5", use).states
    )


def test_it_counts_as_its_vectors_and_is_never_divided(nano, tmp_path: Path) -> None:
    use = use_embedding(write_embedding(tmp_path / "long.safetensors", length=40))
    assert conditioning.count_tokens(nano.tokenizer, "long", [use]) == 40
    chunks = conditioning.split_chunks(
        nano.tokenizer, conditioning.resolve_prompt("long, long, smile", [use])
    )
    assert [len(chunk.ids) for chunk in chunks] == [41, 42]
    assert [chunk.embeddings for chunk in chunks] == [[(0, use)], [(0, use)]]
    request = replace(REQUEST, prompt="long long", embeddings=(use,))
    assert conditioning.count_chunks(nano.tokenizer, request) == 2
    with pytest.raises(UserError, match="chunks of 75 tokens are too many"):
        conditioning.count_chunks(nano.tokenizer, replace(request, prompt="long " * 20))


def test_it_moves_with_the_words_after_the_last_comma(nano, tmp_path: Path) -> None:
    """In A1111 its vectors would stay in the chunk that the words have left."""
    use = use_embedding(write_embedding(tmp_path / "short.safetensors", length=2))
    prompt = "smile " * 71 + ", short smile smile"
    chunks = conditioning.split_chunks(nano.tokenizer, conditioning.resolve_prompt(prompt, [use]))
    assert [len(chunk.ids) for chunk in chunks] == [72, 4]
    assert [chunk.embeddings for chunk in chunks] == [[], [(0, use)]]


def test_each_of_a_batch_has_its_own(nano, tmp_path: Path) -> None:
    """Two pictures of one prompt whose names stand for other files are not mixed up."""
    one, two = (
        use_embedding(write_embedding(tmp_path / name / "word.safetensors", seed=seed))
        for seed, name in enumerate("ab")
    )
    requests = [replace(REQUEST, prompt="word, smile", embeddings=each) for each in ((one,), (two,), ())]
    together = conditioning.encode_requests(nano, requests, guided=True)(1)
    for i, request in enumerate(requests):
        alone = conditioning.encode_requests(nano, [request], guided=True)(1)
        assert torch.equal(together.states[3 + i], alone.states[1])
        assert torch.equal(together.pooled[3 + i], alone.pooled[1])
    assert len({tuple(row[0].tolist()) for row in together.pooled[3:, None]}) == 3


def test_nothing_stays_on_the_model_when_the_encoder_fails(nano, use: EmbeddingUse, monkeypatch) -> None:
    before = encode(nano, "bad-hands5, smile")
    with monkeypatch.context() as patch:
        patch.setattr(nano.text_encoder.encoder, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encode(nano, "bad-hands5, smile", use)
    assert list_hooks(nano) == []
    assert torch.equal(encode(nano, "bad-hands5, smile").states, before.states)
    encode(nano, "bad-hands5, smile", use)
    assert list_hooks(nano) == []


def write_tensors(tmp_path: Path, **tensors: torch.Tensor) -> EmbeddingUse:
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file)
    return use_embedding(file)


L, G = torch.ones(2, 64), torch.ones(2, 96)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"emb_params": torch.ones(2, 768)}, "bad.safetensors is an embedding for SD 1.5. Use one for SDXL"),
        ({"string_to_param.*": torch.ones(2, 1024)}, "is an embedding for SD 2"),
        ({"x.weight": torch.ones(2, 3)}, "has no clip_l and clip_g. Use one for SDXL"),
        ({"lora_unet_x.lora_up.weight": torch.ones(2, 3)}, "is a LoRA. Put it into models/loras"),
        ({"clip_l": L}, "has no clip_l and clip_g"),
        ({"clip_l": G, "clip_g": L}, r"shapes \(2, 96\) and \(2, 64\).* 768 and 1280 wide"),
        ({"clip_l": torch.ones(64), "clip_g": G}, "shapes"),
        ({"clip_l": L, "clip_g": G, "clip_l_out": L.clone()}, "'clip_l_out', which is not supported"),
        ({"clip_l": L, "clip_g": torch.ones(3, 96)}, "2 and 3 vectors"),
        ({"clip_l": torch.ones(76, 64), "clip_g": torch.ones(76, 96)}, "76 and 76 vectors.* 1 to 75"),
        ({"clip_l": torch.ones(0, 64), "clip_g": torch.ones(0, 96)}, "0 and 0 vectors"),
        ({"clip_l": L * torch.nan, "clip_g": G}, "'clip_l' contains NaN or infinite numbers"),
        ({"clip_l": L, "clip_g": G * torch.inf}, "'clip_g' contains NaN or infinite numbers"),
        ({"clip_l": L.long(), "clip_g": G}, "'clip_l'"),
        ({"clip_l": L.to(torch.complex64), "clip_g": G}, "'clip_l'"),
    ],
)
def test_case_04_an_embedding_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        get_embedding(write_tensors(tmp_path, **tensors))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a complete safetensors file"),
        (b"\x80\x02}q\x00.", "not a complete safetensors file"),
        (b"\xff" * 8 + b"{}", "not a complete safetensors file"),
        (b"\x00" * (embeddings.MAX_FILE_BYTES + 1), "too large for an embedding"),
    ],
    ids=["empty", "pickle", "header", "large"],
)
def test_case_04_a_file_that_is_no_embedding_is_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        get_embedding(use_embedding(file))


def test_any_precision_is_read_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        use = write_tensors(tmp_path, clip_l=(L / 2).to(kind), clip_g=G.to(kind))
        assert get_embedding(use).vectors[0].dtype == torch.float32
        assert get_embedding(use).vectors[0][0, 0] == 0.5
    with pytest.raises(UserError, match="was changed while it was in use"):
        get_embedding(replace(use, sha256="0" * 64))


def test_sdxls_widths_are_sdxls_and_do_not_go_into_nano(nano, tmp_path: Path) -> None:
    use = use_embedding(write_embedding(tmp_path / "large.safetensors", CHUNK_LENGTH, SDXL_WIDTHS))
    assert get_embedding(use).family == "SDXL"
    with pytest.raises(UserError, match="vectors of 768 numbers, this model's text encoder reads 64"):
        encode(nano, "large", use)
    assert list_hooks(nano) == []
