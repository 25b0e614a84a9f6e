"""The same settings are the same picture, whatever was made in between; and every way out of the studio keeps them readable by others."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from core import record
from tests.trust.visitor import Visitor

PROMPT = "1girl, (smile:1.2), blue hair <lora:nano-airbrush:1.5>"
ASKED: dict[str, Any] = {"prompt": PROMPT, "negative": "sketch", "steps": 4, "cfg": 4.5, "api_name": "/generate"}
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # `modules/infotext_utils.py`
CIVITAI_LORA = re.compile(r"<lora:([A-Za-z0-9_.\-]+):([0-9.]+)>")  # `src/utils/metadata/automatic.metadata.ts`
CIVITAI_HASHES = re.compile(r"(?:^|, )Hashes: (\{[^}]*\})")


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_case_17_a_picture_is_the_same_after_tags_were_added_and_after_a_sweep(client: Client) -> None:
    (first,), _ = client.predict(**ASKED, seed=7)
    client.predict(prompt="1girl", seed=7, max_tags=3, api_name="/expand_prompt")
    (after_tags,), _ = client.predict(**ASKED, seed=7)
    client.predict(lora="nano-airbrush", prompts="1girl", seeds="5, 6", strengths="0, 2", api_name="/sweep")
    (after_sweep,), _ = client.predict(**ASKED, seed=7)
    told = client.predict(picture=handle_file(first), api_name="/read_picture")
    (pasted,), _ = client.predict(**{name: told[name] for name in ("prompt", "negative", "width", "height", "steps", "cfg", "seed")}, api_name="/generate")
    files = [Path(file).read_bytes() for file in (first, after_tags, after_sweep, pasted)]
    assert files[1:] == files[:1] * 3, "pixels or settings are other ones"


def test_case_17_four_at_once_are_four_by_themselves(client: Client) -> None:
    """Their seeds count up; pixels differ by one level at most, in a few of a hundred thousand: matrices of another size are added up in another order."""
    together, report = client.predict(**ASKED, seed=7, count=4)
    assert report["seeds"] == [7, 8, 9, 10]
    again, _ = client.predict(**ASKED, seed=7, count=4)
    assert [Path(file).read_bytes() for file in again] == [Path(file).read_bytes() for file in together]
    for seed, file in zip(report["seeds"], together, strict=True):
        (alone,), told = client.predict(**ASKED, seed=seed)
        assert told["seeds"] == [seed] == [record.read_picture(Path(file)).fields["seed"]]
        apart = np.abs(pixels(alone) - pixels(file))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 2e-3


def told_to_all(text: str, seed: int, lora: tuple[str, str] | None) -> None:
    """The settings as our reader, A1111's expression and Civitai's find them."""
    lines = text.split("\n")
    found = {key: json.loads(value) if value.startswith('"') else value for key, value in A1111.findall(lines[-1])}
    assert len(A1111.findall(lines[-1])) >= 3, "A1111 takes a last line with fewer for prompt"
    assert (found["Seed"], found["Model"], found["Size"]) == (str(seed), "nano", "128x128")
    assert found["Steps"].isdigit()
    assert sum(line.startswith("Steps: ") for line in lines) == 1, "Civitai looks for the one line that begins so"
    assert all(json.loads(each) for each in CIVITAI_HASHES.findall(lines[-1]))
    assert CIVITAI_LORA.findall(text) == ([lora] if lora else [])
    if lora:
        assert re.fullmatch(rf"{lora[0]}: [0-9a-f]{{12}}", found["Lora hashes"])


def checked(data: bytes, seed: int, lora: tuple[str, str] | None) -> None:
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        told_to_all(picture.info["parameters"], seed, lora)


def test_case_18_a_script_and_the_pages_gallery_get_files_that_tell(client: Client, studio: str, tmp_path: Path) -> None:
    (file,), _ = client.predict(**ASKED, seed=9)
    checked(Path(file).read_bytes(), 9, ("nano-airbrush", "1.5"))
    fields = record.read_picture(Path(file)).fields
    assert (fields["prompt"], fields["negative"], fields["cfg"], fields["steps"]) == (PROMPT, "sketch", 4.5, 4)
    visitor = Visitor(studio)
    asked: dict[str, Any] = {"negative": "sketch", "CFG": 4.5}
    visitor.join("_make", prompt=PROMPT, Steps=4, seed=9, **asked)
    assert visitor.ended()["success"]
    (url,) = {path for path in re.findall(r'"url":\s*"([^"]+)"', visitor.raw.decode()) if path.endswith("-9.png")}
    shown = visitor.get(url.removeprefix(studio))  # what the gallery shows and its download gives
    assert shown == Path(file).read_bytes(), "the page and a script get the same file"


def test_case_18_a_sweeps_gallery_and_zip_tell(client: Client, studio: str) -> None:
    *_, archive, report = client.predict(lora="nano-airbrush", prompts="1girl", seeds="5, 6", strengths="0, 2", api_name="/sweep")
    with zipfile.ZipFile(archive) as found:
        for cell in report["cells"]:
            checked(found.read(cell["picture"]), cell["seed"], ("nano-airbrush", "2") if cell["strength"] else None)
    visitor = Visitor(studio)
    asked: dict[str, Any] = {"sweep-shelf": "nano-airbrush", "prompts": "1girl", "seeds": "5, 6", "strengths": "0, 2"}
    visitor.join("_sweep", **asked)
    assert visitor.ended()["success"]
    shown = {url for url in re.findall(r'"url":\s*"([^"]+)"', visitor.raw.decode()) if "/cells/" in url}
    assert len(shown) == 4
    for url in shown:
        seed = int(re.findall(r"seed(\d+)\.png", url)[0])
        checked(visitor.get(url.removeprefix(studio)), seed, ("nano-airbrush", "2") if "/cells/2/" in url else None)


@pytest.mark.parametrize("strength", [-1.0, 0.5])
def test_case_18_a_strength_that_civitai_cannot_read_is_still_ours(client: Client, strength: float) -> None:
    (file,), _ = client.predict(prompt="1girl", loras=[{"lora": "nano-airbrush", "strength": strength}], seed=4, steps=1, api_name="/generate")
    assert f"<lora:nano-airbrush:{strength:g}>" in record.read_picture(Path(file)).fields["prompt"]
    checked(Path(file).read_bytes(), 4, ("nano-airbrush", "0.5") if strength > 0 else None)
