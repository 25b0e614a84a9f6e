"""A person's embeddings work by their names, wherever they lie, and pictures tell which they were."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.generate import picture_file
from core.generate.notes import list_file_notes
from core.generate.pipeline import generate
from core.generate.request import PictureForm, build_cells, fill_form, find_form_problems
from core.lora import edit
from core.lora.file import read_lora_file
from core.models import bases, embedding_library
from core.prompts import png_metadata
from core.schema.errors import UserError
from core.schema.events import Picture
from core.schema.records import read_form
from core.schema.types import Cell, LoraUse, Request
from core.sweep import cell_cache
from core.sweep.plan import SweepForm, plan_sweep
from core.sweep.study import SweepStudy
from core.system import paths
from tabs.generate import prompt as prompt_page
from tests.lora.parts import write_lora
from tests.model import fingerprint
from tests.prompts.test_embeddings import SDXL_WIDTHS, write_embedding

LAYOUTS = {
    "A1111": "embeddings",
    "ComfyUI": "models/embeddings",
    "SwarmUI": "Models/Embeddings",
    "Stability Matrix": "Data/Models/Embeddings",
}
TINY = {"steps": 1, "width": 64, "height": 64, "seed": 7, "cfg": 3.0}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of embeddings, which is empty."""
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "MODEL_ROOTS", [])
    folder = tmp_path / "models/embeddings"
    folder.mkdir(parents=True)
    return folder


def fill(prompt: str, **values) -> Request:
    return fill_form(read_form(PictureForm, {"prompt": prompt, **values})).request


@pytest.mark.parametrize("program", LAYOUTS)
def test_another_programs_embeddings_are_found_by_its_root(program: str, shelf: Path) -> None:
    root = shelf.parent.parent
    file = write_embedding(root / "elsewhere" / LAYOUTS[program] / "sub/EasyNegative.safetensors")
    (root / "paths.toml").write_text(f"roots = ['{root / 'elsewhere'}']\n")
    assert embedding_library.list_embeddings() == {"EasyNegative": file}
    (use,) = fill("1girl", negative="easynegative, sketch").embeddings
    assert (use.word, use.path) == ("EasyNegative", str(file))


def test_a_suffix_within_a_name_stays(shelf: Path) -> None:
    file = write_embedding(shelf / "a.safetensors-b.safetensors")
    assert embedding_library.list_embeddings() == {"a.safetensors-b": file}


def test_every_prompt_of_a_picture_can_name_one(shelf: Path) -> None:
    for name in ("one", "two", "three", "four", "five"):
        write_embedding(shelf / f"{name}zz.safetensors", seed=len(name))
    detail = {"detector": "nano face", "prompt": "embedding:threezz", "negative": "fourzz"}
    request = fill("onezz, onezz", negative="twozz", detail=detail)
    assert [use.word for use in request.embeddings] == ["onezz", "twozz", "threezz", "fourzz"]


def test_of_two_with_one_name_each_has_its_own(shelf: Path) -> None:
    first = write_embedding(shelf / "style.safetensors")
    second = write_embedding(shelf / "pony/style.safetensors", seed=1)
    (shelf / "style.pt").write_bytes(b"")
    assert list(embedding_library.list_embeddings().values())[:2] == [first, second]
    assert [use.path for use in fill("style").embeddings] == [str(first)]
    assert [use.path for use in fill(r"style \(embeddings/pony\), x").embeddings] == [str(second)]


@pytest.mark.parametrize("prompt", ["old, 1girl", "1girl, (embedding:old:1.2)"])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_case_05_a_pickle_that_a_prompt_names_is_refused_unopened(
    prompt: str, suffix: str, shelf: Path
) -> None:
    (shelf / f"old{suffix}").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    said = rf".*is the file old\{suffix}, a pickle, which can contain"
    if "embedding:" in prompt:
        with pytest.raises(UserError, match=f"^prompt: {said}"):
            fill(prompt)
    else:
        request = fill(prompt)
        assert request.embeddings == ()
        (note,) = list_file_notes(request)
        assert re.match(rf"'old' stays a word: {said}", note)
    assert fill("golden, 1girl").embeddings == ()


def test_what_is_not_there_or_does_not_fit_is_one_sentence(shelf: Path) -> None:
    write_embedding(shelf / "large.safetensors", widths=SDXL_WIDTHS)
    save_file({"emb_params": torch.ones(2, 768)}, shelf / "sd15.safetensors")
    for prompt, sentence in {
        "embedding:gone": "'embedding:gone' is not among the embeddings, which are large, sd15.",
        "embedding:large": "the embedding 'large' is made for SDXL, but nano (built-in, 128 px) is not of "
        "that family.",
        "embedding:sd15": "sd15.safetensors is an embedding for SD 1.5. Use one for SDXL, with clip_l and "
        "clip_g.",
    }.items():
        for values in ({"prompt": prompt}, {"prompt": "1girl", "negative": prompt}):
            field = [*values][-1]
            with pytest.raises(UserError) as refused:
                fill(**values)
            assert (refused.value.field, refused.value.sentence) == (field, sentence)
            assert find_form_problems(values) == {field: f"{field}: {sentence}"}
    assert find_form_problems({"prompt": "larger, sd-15"}) == {}


def test_a_word_that_is_an_unusable_files_name_stays_a_word(shelf: Path) -> None:
    """A folder of A1111 is full of SD 1.5's embeddings: 'smile' must not stop every prompt with a smile."""
    save_file({"emb_params": torch.ones(2, 768)}, shelf / "smile.safetensors")
    write_embedding(shelf / "hair.safetensors")
    request = fill("1girl, blue hair, smile", negative="smile")
    assert [use.word for use in request.embeddings] == ["hair"]
    assert list_file_notes(request) == [
        "Embeddings: hair.",
        "'smile' stays a word: smile.safetensors is an embedding for SD 1.5. Use one for SDXL, with clip_l "
        "and clip_g.",
    ]


def test_the_counter_counts_what_can_be_used(shelf: Path) -> None:
    word = bases.count_prompt_tokens("smile")
    write_embedding(shelf / "many.safetensors", length=40)
    (shelf / "smile.safetensors").write_bytes(b"broken")
    assert prompt_page.format_token_count("many, smile").startswith(f"{41 + word} / 75")
    assert prompt_page.format_token_count("many embedding:gone <lora:gone:1>").startswith("40 / 75")
    (shelf.parent.parent / "paths.toml").write_text("roots = 3")
    assert prompt_page.format_token_count("smile").startswith(f"{word} / 75")


def test_a_picture_shows_its_embedding_and_leaves_the_model_as_it_was(shelf: Path) -> None:
    write_embedding(shelf / "zzq.safetensors")
    bases.load_model("nano")
    before = fingerprint()
    (cell,) = build_cells(read_form(PictureForm, {"prompt": "zzq, 1girl", **TINY}))
    words = replace(cell.request, embeddings=())
    events = generate([cell, Cell(label="", request=words), replace(cell, label="again")])
    pictures = {event.index: event.image.tobytes() for event in events if isinstance(event, Picture)}
    (alone,) = [event.image.tobytes() for event in generate([cell]) if isinstance(event, Picture)]
    assert pictures[0] != pictures[1], "the embedding made no difference"
    assert pictures[0] == pictures[2]
    # alone, sums are rounded otherwise than in a batch
    assert (
        np.abs(np.frombuffer(alone, np.uint8) - np.frombuffer(pictures[0], np.uint8).astype(int)).max() <= 1
    )
    assert fingerprint() == before


def test_another_file_under_the_name_is_another_cell(shelf: Path) -> None:
    file = write_embedding(shelf / "zzq.safetensors")
    first = fill("zzq", seed=1)
    (shelf / "sub").mkdir()
    file = file.rename(shelf / "sub" / file.name)
    assert cell_cache.hash_request(fill("zzq", seed=1)) == cell_cache.hash_request(first), "it only moved"
    write_embedding(file, seed=1)
    second = fill("zzq", seed=1)
    hashes = {cell_cache.hash_request(each) for each in (first, second, replace(first, embeddings=()))}
    assert len(hashes) == 3


def test_infotext_tells_the_embeddings_and_reading_it_back_says_which_are_missing(shelf: Path) -> None:
    file = write_embedding(shelf / "Easy, Negative.safetensors")
    request = fill("1girl", negative=r"easy, negative", seed=1)
    (use,) = request.embeddings
    png = shelf / "picture.png"
    text = picture_file.save_picture(Image.new("RGB", (8, 8)), request, png)
    assert f'TI hashes: "Easy Negative: {use.sha256[:12]}"' in text
    hashes = png_metadata.read_infotext(png).unused["TI hashes"]
    prompts = (request.prompt, request.negative)
    assert embedding_library.describe_other_embeddings(hashes, prompts) == []
    assert embedding_library.describe_other_embeddings("", prompts) == []
    assert embedding_library.describe_other_embeddings(hashes[:-2], prompts) == [], "Civitai's are shorter"
    write_embedding(file, seed=1)
    (said,) = embedding_library.describe_other_embeddings(hashes, prompts)
    assert said == "The embedding Easy Negative is another file here than the one in the image."
    file.unlink()
    (said,) = embedding_library.describe_other_embeddings(hashes, prompts)
    assert said == "The embedding Easy Negative is not here; its name is read as words."
    assert embedding_library.describe_other_embeddings("a: 0123456789", ["embedding:A"]) == []
    assert len(embedding_library.describe_other_embeddings(",".join("x: 1" for _ in range(999)), [])) == 20


# --- LoRAs that bring embeddings along --------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> LoraUse:
    """A LoRA of one layer with the embedding `mychar`, in OneTrainer's layout."""
    return write_bundle(tmp_path / "bundle.safetensors", **make_parts())


def make_parts(word: str = "MyChar") -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    widths = {"clip_l": 64, "clip_g": 96}
    return {
        f"bundle_emb.{word}.{part}": torch.randn(2, width, generator=rng) for part, width in widths.items()
    }


def write_bundle(file: Path, **parts: torch.Tensor) -> LoraUse:
    layer = "mid_block.attentions.0.proj_in"
    width = bases.load_model("nano").unet.get_submodule(layer).weight.shape[0]
    use = write_lora(
        file, layer, lora_down__weight=torch.ones(1, width), lora_up__weight=torch.ones(width, 1)
    )
    save_file(load_file(file) | parts, file)
    return use


def test_a_loras_embedding_works_while_it_is_in_use(bundle: LoraUse, shelf: Path) -> None:
    prompt, values = "mychar, 1girl", {"lora_file": bundle.path, "lora_strength": 0.5}
    request = fill(prompt, **values)
    (use,) = request.embeddings
    assert (use.word, use.path, use.key_prefix) == ("MyChar", bundle.path, "bundle_emb.MyChar.")
    assert fill(prompt, **values | {"lora_strength": 0.0}).embeddings == ()
    assert fill(prompt).embeddings == ()
    with pytest.raises(UserError, match="'embedding:mychar' is not among the embeddings, which are none"):
        fill("embedding:mychar")
    assert "TI hashes" not in picture_file.save_picture(
        Image.new("RGB", (8, 8)), request, shelf / "picture.png"
    ), "A1111 writes hashes of files alone"


def test_a_sweep_has_its_embeddings_where_they_belong(bundle: LoraUse, shelf: Path) -> None:
    write_embedding(shelf / "one.safetensors")
    write_embedding(shelf / "bad.safetensors", seed=1)
    form = {"lora": bundle.path, "prompts": ["embedding:mychar, one", "smile, x"], "strengths": "0-1 (+1)"}
    study = SweepStudy(plan_sweep(read_form(SweepForm, form)))
    words = {
        (strength, item[0][:5]): [use.word for use in study.build_request(strength, item).embeddings]
        for strength in (0.0, 1.0)
        for item in study.items
    }
    assert words == {
        (0.0, "embed"): ["one"],
        (1.0, "embed"): ["MyChar", "one"],
        (0.0, "smile"): [],
        (1.0, "smile"): [],
    }
    with pytest.raises(UserError, match=r"^prompts: 'embedding:gone' is not among the embeddings"):
        plan_sweep(read_form(SweepForm, form | {"prompts": "embedding:gone"}))


def test_a_rewritten_lora_keeps_its_embeddings(bundle: LoraUse, tmp_path: Path) -> None:
    found = read_lora_file(Path(bundle.path))
    assert found.embeddings == ("MyChar",)
    assert "It brings embeddings, which work by their words: MyChar." in found.notes
    again = read_lora_file(edit.rewrite_lora(found, tmp_path, multiply=2.0))
    assert again.embeddings == ("MyChar",)
    for key, value in make_parts().items():
        assert torch.equal(again.load_tensors()[key], value)


def test_an_embedding_among_loras_is_told(tmp_path: Path) -> None:
    file = write_embedding(tmp_path / "lost.safetensors")
    with pytest.raises(UserError, match=r"lost.safetensors is an embedding .* Put it into models/embeddings"):
        read_lora_file(file)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"bundle_emb.x.string_to_param.*": torch.ones(2, 768)}, "'string_to_param.*'|which is not for SDXL"),
        ({"bundle_emb.x.clip_l": torch.ones(2, 64)}, "embedding 'x' with 'clip_l', which is not for SDXL"),
        (make_parts() | {"bundle_emb.MyChar.clip_l_out": torch.ones(1)}, "which is not for SDXL"),
        (make_parts("a\nb"), "an embedding whose name is not valid"),
        (make_parts("x" * 101), "an embedding whose name is not valid"),
        (make_parts(""), "an embedding whose name is not valid"),
        ({key: value * torch.nan for key, value in make_parts().items()}, "contains NaN or infinite numbers"),
        ({f"bundle_emb.{i}.clip_l": torch.ones(1) for i in range(65)}, "has 65 embeddings; the limit is 64"),
    ],
)
def test_case_04_a_lora_with_a_bad_embedding_is_refused(
    parts: dict[str, torch.Tensor], sentence: str, tmp_path: Path
) -> None:
    use = write_bundle(tmp_path / "bundle.safetensors", **parts)
    with pytest.raises(UserError, match=sentence):
        read_lora_file(Path(use.path))
