"""What the library tells of a LoRA: where each fact comes from, and what hostile files get."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from core.models import lora_facts, lora_thumbnails, measured_strengths
from core.models.lora_facts import read_lora_facts
from core.models.measured_strengths import MeasuredStrength, record_strength
from core.schema.errors import UserError
from core.system import paths
from tests.models.library import write_lora


def draw_preview(kind: str = "PNG", size: tuple[int, int] = (640, 960)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "teal").save(out, kind)
    return out.getvalue()


def test_the_header_alone_tells_kind_rank_family_trigger_and_strength(shelf: Path) -> None:
    told = {"modelspec.trigger_phrase": "arona", "ss_sd_model_name": "ponyDiffusionV6XL_v6.safetensors"}
    told["modelspec.usage_hint"] = "Strength 1.2, sweet spot 0.8 to 1.6, measured on nano."
    facts = read_lora_facts(write_lora(shelf / "a.safetensors", told))
    assert (facts.kind, facts.rank, facts.family, facts.trigger) == ("LoRA", 2, "Pony", "arona")
    assert facts.strength == lora_facts.LoraStrength(value=1.2, interval=(0.8, 1.6), source="from modelspec")


@pytest.mark.parametrize(
    ("hint", "value", "interval"),
    [
        ("use strength 0.6-0.8", 0.7, (0.6, 0.8)),
        ("Weight: 1", 1.0, None),
        ("recommended weight -0.5", -0.5, None),
        ("Measured on nano: no strength of 3 works", None, None),
        ("strength 70", None, None),
        ("trained at weight 10, 1500 steps", None, None),
        ("as you like", None, None),
    ],
)
def test_a_free_hint_is_read_or_left(
    hint: str, value: float | None, interval: tuple[float, float] | None, shelf: Path
) -> None:
    found = read_lora_facts(write_lora(shelf / "a.safetensors", {"modelspec.usage_hint": hint})).strength
    assert (found and found.value, found and found.interval) == (value, interval)


SIDECARS = {
    "A1111": (
        ".json",
        {
            "preferred weight": 0.8,
            "activation text": "arona, halo <lo<x:1>ra:other:5> >_<",
            "sd version": "SDXL",
        },
        ("SDXL", "arona, halo >_<", 0.8),
    ),
    "Civitai": (
        ".civitai.info",
        {"trainedWords": ["arona"], "baseModel": "Illustrious", "name": "v1"},
        ("Illustrious", "arona", None),
    ),
    "Lora Manager": (
        ".metadata.json",
        {
            "base_model": "NoobAI",
            "usage_tips": '{"strength": 0.9, "strength_min": 0.5, "strength_max": 1.1}',
            "civitai": {"trainedWords": ["one", "two"]},
        },
        ("NoobAI", None, 0.9),
    ),
}


@pytest.mark.parametrize("program", SIDECARS)
def test_a_programs_sidecar_is_read(program: str, shelf: Path) -> None:
    suffix, table, expected = SIDECARS[program]
    file = write_lora(shelf / "a.b.safetensors")
    (shelf / f"a.b{suffix}").write_text(json.dumps(table))
    facts = read_lora_facts(file)
    assert (facts.family, facts.trigger, facts.strength and facts.strength.value) == expected
    if facts.strength:
        assert facts.strength.source == "from its sidecar"
    if program == "Lora Manager":
        assert facts.words == ("one", "two"), "of several words, a person chooses"
        assert facts.strength
        assert facts.strength.interval == (0.5, 1.1)


def test_a_sidecar_of_a_sweep_tells_its_range_and_model(shelf: Path) -> None:
    notes = {"model": "nano", "sweet_spot": [0.8, 1.6], "recommended": 1.2}
    file = write_lora(shelf / "a.safetensors")
    for weight, said in (
        (1.2, ((0.8, 1.6), "from its sidecar, measured on nano")),
        (1.0, (None, "from its sidecar")),
    ):
        table = {"preferred weight": weight, "notes": json.dumps(notes)}
        (shelf / "a.json").write_text(json.dumps(table))
        found = read_lora_facts(file).strength
        assert found
        assert (found.interval, found.source) == said, "a rescaled copy has other strengths"


def test_what_was_measured_here_comes_first_and_stays_with_the_content(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lora(shelf / "a.safetensors")
    (shelf / "a.json").write_text('{"preferred weight": 0.8}')
    record_strength(file, MeasuredStrength(model="nano", recommended=1.5, interval=(1.0, 2.0)))
    record_strength(file, MeasuredStrength(model="pony-v6", recommended=0.7, interval=(0.5, 1.0)))
    copy = write_lora(shelf / "renamed.safetensors", {"title": "with other metadata"})
    other = write_lora(shelf / "other.safetensors", value=2.0)
    for model, value, source in (
        ("nano", 1.5, "measured here on nano"),
        ("sdxl-base", 0.7, "measured here on pony-v6"),
    ):
        for each in (file, copy):
            found = read_lora_facts(each, model).strength
            assert found
            assert (found.value, found.source) == (value, source)
    assert read_lora_facts(other, "nano").strength is None
    monkeypatch.setattr(measured_strengths, "is_space", lambda: True)
    found = read_lora_facts(file, "nano").strength
    assert found
    assert found.source == "from its sidecar", "a visitor sees what another one measured"


def test_a_space_keeps_no_measurement(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_strengths, "is_space", lambda: True)
    record_strength(
        write_lora(shelf / "a.safetensors"),
        MeasuredStrength(model="nano", recommended=1.5, interval=(1.0, 2.0)),
    )
    assert not paths.MEASURED.exists()


HOSTILE = {
    "not JSON": b"{",
    "a list": b"[1]",
    "too deep": b"[" * 100_000,
    "half a character": b'{"activation text": "\\ud800", "preferred weight": NaN}',
    "wrong types": b'{"activation text": {"a": 1}, "preferred weight": "1", "sd version": 3, "notes": [1]}',
    "too strong": b'{"preferred weight": 1e300, "notes": "{}"}',
    "true": b'{"preferred weight": true}',
    "too long": b'{"preferred weight": 1, "notes": "' + b"x" * 3_000_000 + b'"}',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("suffix", [".json", ".metadata.json", ".civitai.info"])
def test_case_04_a_hostile_sidecar_says_nothing(kind: str, suffix: str, shelf: Path) -> None:
    file = write_lora(shelf / "a.safetensors")
    (shelf / f"a{suffix}").write_bytes(HOSTILE[kind])
    facts = read_lora_facts(file)
    assert (facts.trigger, facts.words, facts.strength) == (None, (), None)


def test_case_04_a_name_as_long_as_a_name_can_be_is_read(shelf: Path) -> None:
    """There is no room for a sidecar's ending."""
    assert read_lora_facts(write_lora(shelf / f"{'a' * 243}.safetensors")).rank == 2


@pytest.mark.parametrize("name", ["a.preview.png", "a.png", "a.jpg", "a.preview.webp"])
def test_a_preview_beside_the_file_becomes_a_small_thumbnail(name: str, shelf: Path) -> None:
    file = write_lora(shelf / "a.safetensors")
    kind = {"jpg": "JPEG"}.get(name[-3:], name.rpartition(".")[2].upper())
    (shelf / name).write_bytes(draw_preview(kind))
    uri = read_lora_facts(file).thumbnail
    assert uri
    assert uri.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert max(picture.size) == lora_thumbnails.SIDE


def test_the_metadatas_picture_is_shown_if_it_is_one(shelf: Path) -> None:
    data = base64.b64encode(draw_preview("JPEG")).decode()
    for number, (uri, is_shown) in enumerate(
        [
            (f"data:image/jpeg;base64,{data}", True),
            (f"data:image/svg+xml;base64,{data}", False),
            ("data:image/png;base64,AAAA", False),
            ("data:image/png;base64,A", False),
            (f"https://example.org/a.png#{data}", False),
            (f"data:image/jpeg;base64,{'A' * 3_000_000}", False),
        ]
    ):
        file = write_lora(shelf / f"{number}.safetensors", {"modelspec.thumbnail": uri})
        assert bool(read_lora_facts(file).thumbnail) == is_shown, uri[:60]


def test_case_08_a_hostile_preview_is_left_out(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, preview = write_lora(shelf / "a.safetensors"), shelf / "a.preview.png"
    whole = draw_preview()
    for data in (whole[: len(whole) // 2], b"<svg/>", b"", draw_preview(size=(6000, 6000))):
        preview.write_bytes(data)
        assert read_lora_facts(file).thumbnail is None
    monkeypatch.setattr(lora_thumbnails, "MAX_PREVIEW_BYTES", len(whole) - 1)
    preview.write_bytes(whole)
    assert read_lora_facts(file).thumbnail is None


def test_a_link_beside_a_lora_is_not_followed_on_a_space(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, secret = write_lora(shelf / "a.safetensors"), shelf.parent / "secret.png"
    secret.write_bytes(draw_preview())
    (shelf / "a.png").symlink_to(secret)
    assert read_lora_facts(file).thumbnail
    monkeypatch.setattr("core.models.lora_sidecars.is_space", lambda: True)
    assert read_lora_facts(file).thumbnail is None


def test_a_file_that_cannot_be_used_says_why_when_it_is_chosen(shelf: Path) -> None:
    (shelf / "a.safetensors").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match="is a pickle"):
        read_lora_facts(shelf / "a.safetensors")


def test_a_file_that_was_replaced_is_read_again(shelf: Path) -> None:
    file = write_lora(shelf / "a.safetensors", {"modelspec.trigger_phrase": "old"})
    assert read_lora_facts(file).trigger == "old"
    write_lora(file, {"modelspec.trigger_phrase": "new"})
    assert read_lora_facts(file).trigger == "new"


def test_no_sidecar_outweighs_the_shapes(shelf: Path) -> None:
    """A LoRA of SDXL that a note takes for one of nano would be said not to fit where it fits."""
    file = write_lora(shelf / "a.safetensors", {"ss_sd_model_name": "sd_xl_base_1.0.safetensors"})
    (shelf / "a.civitai.info").write_text('{"baseModel": "SD 1.5"}')
    assert read_lora_facts(file).family == "SDXL"
