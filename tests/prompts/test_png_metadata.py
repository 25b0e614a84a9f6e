"""core.prompts.png_metadata reads back what it writes and what other tools write.

Hostile texts are refused at once.
"""

import contextlib
import json
import re
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from core.prompts.infotext import STAGE_KEYS, VERSION, create_infotext, parse_infotext
from core.prompts.png_metadata import read_infotext, save_png
from core.prompts.settings_text import MAX_CHARACTERS
from core.schema.errors import UserError
from core.schema.samplers import SAMPLERS, SCHEDULES
from core.schema.types import Detail, Grain, Hires, Model, Request

# A1111's own regex, `modules/infotext_utils.py`.
A1111_PATTERN = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')

PLAIN_REQUEST = Request(
    model="nano",
    prompt="1girl, smile",
    negative="lowres",
    width=832,
    height=1216,
    steps=25,
    cfg=5,
    sampler="Euler a",
    seed=7,
)
SETTINGS_LINE = "Steps: 25, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 832x1216, Model: nano"

CONTROL_CHARACTERS = "".join(map(chr, [*range(9), *range(11, 32), 127]))
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters=CONTROL_CHARACTERS)
MARKUP = ["\n", ", ", '"', "\\", "BREAK", "<lora:a:1>", r"\(series\)", "(a:1.2)"]
LOOKALIKES = [
    SETTINGS_LINE,
    f"\n{SETTINGS_LINE}",
    "\nNegative prompt:",
    "Negative prompt: x\n",
    "Prompt lines: 1",
]
SHARES = st.floats(0, 8)
TEXTS = st.lists(st.text(LETTERS, max_size=8) | st.sampled_from(MARKUP + LOOKALIKES), max_size=8).map(
    lambda pieces: "".join(pieces).strip()
)


def make_unchecked(kind: type, **values: Any) -> Any:
    """Make a record without its checks: pictures of other tools hold values that cannot be made here."""
    made = object.__new__(kind)
    for field in fields(kind):
        object.__setattr__(made, field.name, values.get(field.name, field.default))
    return made


@settings(deadline=None)
@given(
    request=st.builds(
        partial(make_unchecked, Request),
        model=TEXTS.filter(bool),
        prompt=TEXTS,
        negative=TEXTS,
        width=st.integers(1, 16384),
        height=st.integers(1, 16384),
        steps=st.integers(1, 1000),
        cfg=st.floats(0, 100) | st.integers(0, 100),
        cfg_rescale=st.just(0.0) | st.floats(0.01, 1),
        sampler=st.sampled_from([*SAMPLERS, "a, b: c"]),
        schedule=st.sampled_from(SCHEDULES),
        seed=st.integers(0, 2**64 - 1),
        hires=st.none()
        | st.builds(
            partial(make_unchecked, Hires),
            upscaler=TEXTS.filter(bool),
            factor=SHARES,
            denoise=SHARES,
            steps=st.none() | st.integers(1, 150),
            smooth=SHARES,
            prompt=TEXTS,
            negative=TEXTS,
            sampler=st.none() | st.sampled_from([*SAMPLERS]),
            schedule=st.none() | st.sampled_from(SCHEDULES),
            cfg=st.none() | st.floats(0, 100),
        ),
        detail=st.none()
        | st.builds(
            partial(make_unchecked, Detail),
            detector=TEXTS.filter(bool),
            prompt=TEXTS,
            negative=TEXTS,
            dilate=st.integers(-64, 64),
            least=SHARES,
        ),
        grain=st.none()
        | st.builds(
            partial(make_unchecked, Grain), amount=SHARES, size=SHARES, monochrome=st.booleans(), blur=SHARES
        ),
        expanded=st.none() | TEXTS.filter(bool),
    )
)
@example(request=replace(PLAIN_REQUEST, prompt="a\nNegative prompt: b", negative=""))
@example(request=replace(PLAIN_REQUEST, prompt="Negative prompt:", negative="c\nNegative prompt: d"))
@example(request=replace(PLAIN_REQUEST, prompt="", negative="Negative prompt: d", model='["x'))
def test_a_request_comes_back_equal(request):
    fields = parse_infotext(create_infotext(request)).fields
    stages = {
        name: make_unchecked(kind, **fields.pop(name))
        for name, (kind, _) in STAGE_KEYS.items()
        if name in fields
    }
    assert make_unchecked(Request, **fields, **stages) == request


def test_the_text_is_a1111s():
    request = replace(PLAIN_REQUEST, sampler="DPM++ 2M SDE", schedule="Karras", cfg=5.25, cfg_rescale=0.7)
    model = Model(name="nano", title="Nano", source="a/b", revision="0123abcd" * 5, licence="MIT")
    text = create_infotext(request, model, {"Lora hashes": "a: 0123456789ab", "Model hash": "31e35c80fc"})
    assert text == (
        "1girl, smile\nNegative prompt: lowres\n"
        "Steps: 25, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5.25, RescaleCFG: 0.7, "
        "Seed: 7, Size: 832x1216, Model hash: 31e35c80fc, Model: nano, "
        f'Model revision: {"0123abcd" * 5}, Lora hashes: "a: 0123456789ab", Sweetspot: {VERSION}'
    )
    unused = {
        "Model hash": "31e35c80fc",
        "Model revision": "0123abcd" * 5,
        "Lora hashes": "a: 0123456789ab",
        "Sweetspot": VERSION,
    }
    assert parse_infotext(text).unused == unused


@pytest.mark.parametrize(
    ("written", "sampler", "schedule"),
    [
        ("Sampler: DPM++ 2M, Schedule type: SGM Uniform", "DPM++ 2M", "SGM Uniform"),
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("Sampler: DPM++ 2M Karras, Schedule type: Exponential", "DPM++ 2M", "Exponential"),
        ("Sampler: Euler a, Schedule type: Uniform", "Euler a", "Normal"),
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a", "Automatic"),
        ("Sampler: DDIM", "DDIM", "Automatic"),
        ("Sampler: Euler a, Sweetspot: 0.1.0", "Euler a", "Sweetspot 0.1"),
        ("Sampler: DPM++ 2M, Schedule type: Karras, Sweetspot: 0.1.0", "DPM++ 2M", "Sweetspot 0.1 Karras"),
        ("Sampler: Euler a, Sweetspot: 0.2.0", "Euler a", "Automatic"),
    ],
)
def test_sampler_and_schedule_are_two_choices(written, sampler, schedule):
    fields = parse_infotext(f"1girl\nSteps: 25, {written}, Seed: 7").fields
    assert (fields["sampler"], fields["schedule"]) == (sampler, schedule)


def test_nothing_is_written_for_what_is_not_there():
    text = create_infotext(replace(PLAIN_REQUEST, prompt=" 1girl\n", negative=" "))
    assert text == f"1girl\n{SETTINGS_LINE}, Sweetspot: {VERSION}", (
        "an empty negative, an unknown hash or commit left a trace, or 5 became 5.0"
    )


def test_case_18_a1111_and_civitai_find_our_settings():
    extra = {"Note": 'commas, "quotes",\nlines: all', "Style": '"x"', "Hires prompt": "[a"}
    *_, last = create_infotext(PLAIN_REQUEST, extra=extra).split("\n")
    found = {
        key: json.loads(value) if value.startswith('"') else value
        for key, value in A1111_PATTERN.findall(last)
    }
    assert found == dict(A1111_PATTERN.findall(SETTINGS_LINE)) | extra | {"Sweetspot": VERSION}
    assert last.startswith("Steps: "), "Civitai looks for a line that begins so"


def list_infotext_fields(request: Request) -> dict:
    """Return the fields of a request that an infotext names; it leaves out a stage that is off."""
    return {
        name: value
        for name, value in vars(request).items()
        if value not in (None, (), 0.0) and (name, value) != ("clip_skip", 2)
    }


CAT_FIELDS = list_infotext_fields(replace(PLAIN_REQUEST, prompt="a cat", negative=""))
RESOURCES = '[{"type":"lora","weight":0.8,"modelName":"x [XL], Steps: 99"}]'
FOREIGN_INFOTEXTS = {
    "A1111, lines and LoRAs": (
        f"a cat,\nBREAK\n(red:1.2) <lora:x:0.8>\nNegative prompt: dog,\n\nbird\n{SETTINGS_LINE}, "
        'Hires upscale: 2, Lora hashes: "x: e3f9, y: 0a", Version: v1.10.1',
        CAT_FIELDS
        | {"prompt": "a cat,\nBREAK\n(red:1.2) <lora:x:0.8>", "negative": "dog,\n\nbird"}
        | {"hires": {"factor": 2.0, "upscaler": "Latent"}},
        {"Lora hashes": "x: e3f9, y: 0a", "Version": "v1.10.1"},
    ),
    "A1111, schedule apart": (
        "a cat\nSteps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 3001968073, "
        "Size: 832x1216, Model hash: b513c6287d, Model: nano",
        CAT_FIELDS | {"sampler": "DPM++ 2M", "schedule": "Karras", "cfg": 6.5, "seed": 3001968073},
        {"Model hash": "b513c6287d"},
    ),
    "A1111 before 1.9, Windows": (
        "a cat,\r\nasleep\r\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 7, "
        "Size: 832x1216, Batch size: 2, Model: nano\r\n",
        CAT_FIELDS | {"prompt": "a cat,\nasleep", "sampler": "DPM++ 2M", "schedule": "Karras"},
        {"Batch size": "2"},
    ),
    "Forge": (
        "a cat\nNegative prompt: \nSteps: 25, Sampler: Euler a, Schedule type: Automatic, CFG scale: 5, "
        "Distilled CFG Scale: 3.5, Seed: 7, "
        + "Size: 832x1216, Model: nano, Version: f2.0.1v1.10.1-previous-669-gdfdcbab6, Module 1: ae",
        CAT_FIELDS,
        {"Distilled CFG Scale": "3.5", "Version": "f2.0.1v1.10.1-previous-669-gdfdcbab6", "Module 1": "ae"},
    ),
    "Civitai": (
        "a cat\nNegative prompt: dog\nSteps: 25, Sampler: Undefined, CFG scale: 5, Seed: 7, "
        "Size: 832x1216, Clip skip: 2, Model: nano, " + "Created Date: 2024-09-23T06:17:42.9952795Z, "
        f"Civitai resources: {RESOURCES}, Civitai metadata: {{}}",
        {name: value for name, value in CAT_FIELDS.items() if name not in ("sampler", "schedule")}
        | {"negative": "dog"},
        {
            "Clip skip": "2",
            "Created Date": "2024-09-23T06:17:42.9952795Z",
            "Civitai metadata": "{}",
        },
    ),
    "settings only": (SETTINGS_LINE, CAT_FIELDS | {"prompt": ""}, {}),
    "a prompt like settings": (
        f"{SETTINGS_LINE}\n{SETTINGS_LINE}",
        CAT_FIELDS | {"prompt": SETTINGS_LINE},
        {},
    ),
    "a setting twice": (f"a cat\n{SETTINGS_LINE}, Seed: 8", CAT_FIELDS, {}),
    "no size, an empty version": (
        "Steps: 1, Seed: 2, CFG scale: 3, Version:",
        {"prompt": "", "negative": "", "steps": 1, "seed": 2, "cfg": 3},
        {"Version": ""},
    ),
    "an empty seed": (
        "Steps: 1, Seed: , CFG scale: 3",
        {"prompt": "", "negative": "", "steps": 1, "cfg": 3},
        {"Seed": ""},
    ),
    "a count of lines that does not fit": (
        f"a cat\n{SETTINGS_LINE}, Prompt lines: 9",
        CAT_FIELDS,
        {"Prompt lines": "9"},
    ),
}


@pytest.mark.parametrize(("text", "fields", "unused"), FOREIGN_INFOTEXTS.values(), ids=FOREIGN_INFOTEXTS)
def test_other_tools_texts_are_understood(text, fields, unused):
    reading = parse_infotext(text)
    assert reading.fields == fields
    assert reading.unused == unused


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the last line has none"),
        ("a prompt, and: nothing else", "the last line has none"),
        ('{"prompt": "a, b: c, d: e", "steps": 28, f: 1, g: 2, h: 3}', "the last line has none"),
        (SETTINGS_LINE[:30], "the last line has none"),
        (f"a\x00b\n{SETTINGS_LINE}", "U[+]0000"),
        (f"a\ud800\n{SETTINGS_LINE}", "U[+]D800"),
        ("x" * MAX_CHARACTERS + f"\n{SETTINGS_LINE}", "too many"),
    ],
)
def test_bad_texts_are_refused_in_one_sentence(text, why):
    with pytest.raises(UserError, match=why) as refused:
        parse_infotext(text)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        (
            SETTINGS_LINE.replace("25", "-1"),
            "steps",
            "steps: '-1' is not valid. Use a whole number from 1 to 1000",
        ),
        (SETTINGS_LINE.replace("25", "9" * 5000), "steps", "steps: '999"),
        (SETTINGS_LINE.replace("scale: 5", "scale: nan"), "cfg", "cfg: 'nan'"),
        (SETTINGS_LINE.replace("832x1216", "832"), "height", "height: ''"),
        (SETTINGS_LINE.replace("832x1216", "1x99999"), "height", "height: '99999'"),
        (SETTINGS_LINE.replace("Seed: 7", "Seed: -1"), "seed", "seed: '-1'"),
        (f'{SETTINGS_LINE}, Lora hashes: "x: e3f', None, "Lora hashes is incomplete"),
        (f'{SETTINGS_LINE}, Note: "\\u001b[2J"', None, "Note: the character U+001B"),
        (
            f"{SETTINGS_LINE}\na line that nobody understands",
            None,
            "The line 'a line that nobody understands'",
        ),
        (f"{SETTINGS_LINE}, Civitai resources: [torn]", None, "Civitai resources cannot be read"),
        (f"{SETTINGS_LINE}, Hires upscale: big", None, "hires.factor: 'big' is not valid"),
    ],
)
def test_a_bad_value_loses_that_value_and_not_the_picture(text, field, why):
    reading = parse_infotext(text)
    gone = ("width", "height") if field == "height" else (field,)
    kept = {name: value for name, value in CAT_FIELDS.items() if name not in gone} | {"prompt": ""}
    assert kept.items() <= reading.fields.items()
    assert not reading.fields.keys() & set(gone)
    assert any(sentence.startswith(why) for sentence in reading.lost), reading.lost
    assert all(len(sentence) < 200 for sentence in reading.lost)


def test_what_cannot_be_read_is_not_written():
    with pytest.raises(UserError, match=r"U\+0007"):
        create_infotext(make_unchecked(Request, **{**vars(PLAIN_REQUEST), "prompt": "ding\a"}))


@pytest.mark.parametrize(
    "unit",
    [
        "a: ",
        "aa: ",
        "a",
        " ",
        ", ",
        '"',
        "\\",
        'aa: "',
        ',aa: "\\"',
        ',aa: ["',
        ',aa: [\\"',
        ",aa: {",
        "aa: [{",
        "\nNegative prompt:",
    ],
)
def test_hostile_texts_take_linear_time(unit):
    text = (unit * MAX_CHARACTERS)[: MAX_CHARACTERS - 1] + "x"
    start = time.process_time()  # of this process only: the machine may be busy
    with contextlib.suppress(UserError):
        parse_infotext(text)
    assert time.process_time() - start < 2, "0.1 s is usual; the search is no longer linear"


@pytest.mark.parametrize("prompt", ["1girl, café", "1girl, 笑顔 ✨"], ids=["Latin-1", "beyond"])
def test_a_png_keeps_its_request(tmp_path, prompt):
    request = replace(PLAIN_REQUEST, prompt=prompt)
    save_png(Image.new("RGB", (8, 8), "red"), tmp_path / "a.png", create_infotext(request))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == create_infotext(request)
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert Request(**read_infotext(tmp_path / "a.png").fields) == request
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"], "an unfinished file was left"


def test_a_failing_write_leaves_the_old_picture(tmp_path):
    file = tmp_path / "a.png"
    save_png(Image.new("RGB", (8, 8)), file, SETTINGS_LINE)
    before = file.read_bytes()
    script = """if True:
        import resource, sys
        from pathlib import Path
        from PIL import Image
        from core.prompts.png_metadata import save_png
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # bytes: as a disk that is full\
 after the first pages
        save_png(Image.effect_noise((256, 256), 99), Path(sys.argv[1]), "")"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        check=False,
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
    )
    assert "File too large" in done.stderr, f"the write should have failed:\n{done.stderr}"
    assert file.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["a.png"], "an unfinished file was left"


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + f"笑顔\n{SETTINGS_LINE}".encode("utf-16-be"),
        b"UNICODE\0" + f"笑顔\n{SETTINGS_LINE}".encode("utf-16-le"),
        b"UNICODE\0" + f"\ufeff笑顔\n{SETTINGS_LINE}".encode("utf-16-le"),
        b"ASCII\0\0\0" + f"笑顔\n{SETTINGS_LINE}\0".encode(),
    ],
    ids=["big-endian", "little-endian", "byte order mark", "ASCII"],
)
def test_jpeg_and_webp_are_read_from_exif(tmp_path, format, comment):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (8, 8)).save(tmp_path / "a", format, exif=exif)
    assert read_infotext(tmp_path / "a").fields == list_infotext_fields(PLAIN_REQUEST) | {
        "prompt": "笑顔",
        "negative": "",
    }


def test_pixels_are_not_decoded(tmp_path):
    file = tmp_path / "a.png"
    save_png(Image.effect_noise((64, 64), 99), file, SETTINGS_LINE)
    file.write_bytes(file.read_bytes()[:-2000])
    assert read_infotext(file).fields["seed"] == 7


def test_bad_pictures_are_refused_in_one_sentence(tmp_path):
    file = tmp_path / "a.png"

    def read_refusal() -> str:
        with pytest.raises(UserError) as refused:
            read_infotext(file)
        return str(refused.value)

    assert "cannot be read" in read_refusal(), "no file"
    for content in (
        b"",
        bytes(range(256)),
        SETTINGS_LINE.encode(),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe1\xff\xff",
        b"RIFF\0\0\0\0WEBPVP8 ",
    ):
        file.write_bytes(content)
        assert "cannot be read" in read_refusal(), content
    for picture_format in ("PNG", "JPEG", "WEBP"):
        Image.new("RGB", (8, 8)).save(file, picture_format)
        assert "contains no settings" in read_refusal(), picture_format
    Image.new("RGB", (8, 8)).save(file, "GIF")
    assert "cannot be read" in read_refusal(), "GIF"
    for width in (8001, 40_000):  # above our limit, above Pillow's
        header = b"IHDR" + struct.pack(">IIBBBBB", width, 8000, 8, 2, 0, 0, 0)
        file.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + header
            + struct.pack(">I", zlib.crc32(header))
            + struct.pack(">I4s", 0, b"IDAT")
        )
        assert "64 megapixels" in read_refusal(), width
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*"):
        Image.new("RGB", (8, 8)).save(file, "WEBP", exif=exif)
        assert "cannot be read" in read_refusal(), exif
    bomb = PngInfo()
    bomb.add_text("parameters", "a" * 50_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=bomb)
    assert "cannot be read" in read_refusal(), "a text that unpacks to 50 MB"
