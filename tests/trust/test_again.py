"""The same settings give the same picture, whatever was made in between.

Every way out of the studio keeps the settings readable for other programs.
"""

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

from core.prompts import png_metadata
from tests.trust.visitor import Visitor

PROMPT = "1girl, (smile:1.2), blue hair <lora:nano-airbrush:1.5>"
REQUEST_VALUES: dict[str, Any] = {
    "prompt": PROMPT,
    "negative": "sketch",
    "steps": 4,
    "cfg": 4.5,
    "api_name": "/generate",
}
# `modules/infotext_utils.py`
A1111_PATTERN = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
# `src/utils/metadata/automatic.metadata.ts`
CIVITAI_LORA = re.compile(r"<lora:([A-Za-z0-9_.\-]+):([0-9.]+)>")
CIVITAI_HASHES = re.compile(r"(?:^|, )Hashes: (\{[^}]*\})")


def read_pixels(file: str) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_case_17_a_picture_is_the_same_after_tags_were_added_and_after_a_sweep(client: Client) -> None:
    (first,), _ = client.predict(**REQUEST_VALUES, seed=7)
    client.predict(prompt="1girl", seed=7, max_tags=3, api_name="/expand_prompt")
    (after_tags,), _ = client.predict(**REQUEST_VALUES, seed=7)
    client.predict(lora="nano-airbrush", prompts="1girl", seeds="5, 6", strengths="0, 2", api_name="/sweep")
    (after_sweep,), _ = client.predict(**REQUEST_VALUES, seed=7)
    told = client.predict(picture=handle_file(first), api_name="/read_picture")
    (pasted,), _ = client.predict(
        **{name: told[name] for name in ("prompt", "negative", "width", "height", "steps", "cfg", "seed")},
        api_name="/generate",
    )
    files = [Path(file).read_bytes() for file in (first, after_tags, after_sweep, pasted)]
    assert files[1:] == files[:1] * 3, "pixels or settings are other ones"


def test_case_17_four_at_once_are_four_by_themselves(client: Client) -> None:
    """Their seeds count up, and each is the picture of its seed alone.

    Pixels differ by one level at most, in a few of a hundred thousand: matrices of another size are
    summed in another order.
    """
    together, report = client.predict(**REQUEST_VALUES, seed=7, count=4)
    assert report["seeds"] == [7, 8, 9, 10]
    again, _ = client.predict(**REQUEST_VALUES, seed=7, count=4)
    assert [Path(file).read_bytes() for file in again] == [Path(file).read_bytes() for file in together]
    for seed, file in zip(report["seeds"], together, strict=True):
        (alone,), told = client.predict(**REQUEST_VALUES, seed=seed)
        assert told["seeds"] == [seed] == [png_metadata.read_infotext(Path(file)).fields["seed"]]
        apart = np.abs(read_pixels(alone) - read_pixels(file))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 2e-3


def assert_readable_by_all(text: str, seed: int, lora: tuple[str, str] | None) -> None:
    """Assert that A1111's and Civitai's expressions and our reader find the settings."""
    lines = text.split("\n")
    found = {
        key: json.loads(value) if value.startswith('"') else value
        for key, value in A1111_PATTERN.findall(lines[-1])
    }
    assert len(A1111_PATTERN.findall(lines[-1])) >= 3, "A1111 takes a last line with fewer for prompt"
    assert (found["Seed"], found["Model"], found["Size"]) == (str(seed), "nano", "128x128")
    assert found["Steps"].isdigit()
    assert sum(line.startswith("Steps: ") for line in lines) == 1, (
        "Civitai looks for the one line that begins so"
    )
    assert all(json.loads(each) for each in CIVITAI_HASHES.findall(lines[-1]))
    assert CIVITAI_LORA.findall(text) == ([lora] if lora else [])
    if lora:
        assert re.fullmatch(rf"{lora[0]}: [0-9a-f]{{12}}", found["Lora hashes"])


def assert_infotext(data: bytes, seed: int, lora: tuple[str, str] | None) -> None:
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        assert_readable_by_all(picture.info["parameters"], seed, lora)


def test_case_18_a_script_and_the_pages_gallery_get_files_that_tell(
    client: Client, studio: str, tmp_path: Path
) -> None:
    (file,), _ = client.predict(**REQUEST_VALUES, seed=9)
    assert_infotext(Path(file).read_bytes(), 9, ("nano-airbrush", "1.5"))
    fields = png_metadata.read_infotext(Path(file)).fields
    assert (fields["prompt"], fields["negative"], fields["cfg"], fields["steps"]) == (
        PROMPT,
        "sketch",
        4.5,
        4,
    )
    visitor = Visitor(studio)
    asked: dict[str, Any] = {"negative": "sketch", "CFG scale": 4.5}
    visitor.join("_generate_pictures", prompt=PROMPT, Steps=4, seed=9, **asked)
    assert visitor.wait_for_result()["success"]
    (url,) = {
        path
        for path in re.findall(r'"url":\s*"([^"]+)"', visitor.stream_bytes.decode())
        if path.endswith("-9.png")
    }
    shown = visitor.get(url.removeprefix(studio))  # what the gallery shows and its download gives
    assert shown == Path(file).read_bytes(), "the page and a script get the same file"


def test_case_18_a_sweeps_gallery_and_zip_tell(client: Client, studio: str) -> None:
    *_, archive, report = client.predict(
        lora="nano-airbrush", prompts="1girl", seeds="5, 6", strengths="0, 2", api_name="/sweep"
    )
    with zipfile.ZipFile(archive) as found:
        for cell in report["cells"]:
            assert_infotext(
                found.read(cell["picture"]),
                cell["seed"],
                ("nano-airbrush", "2") if cell["strength"] else None,
            )
    visitor = Visitor(studio)
    asked: dict[str, Any] = {
        "sweep-shelf": "nano-airbrush",
        "prompts": "1girl",
        "seeds": "5, 6",
        "strengths": "0, 2",
    }
    visitor.join("_sweep", **asked)
    assert visitor.wait_for_result()["success"]
    shown = {
        url for url in re.findall(r'"url":\s*"([^"]+)"', visitor.stream_bytes.decode()) if "/cells/" in url
    }
    assert len(shown) == 4
    for url in shown:
        seed = int(re.findall(r"seed(\d+)\.png", url)[0])
        assert_infotext(
            visitor.get(url.removeprefix(studio)),
            seed,
            ("nano-airbrush", "2") if "/cells/2/" in url else None,
        )


@pytest.mark.parametrize("strength", [-1.0, 0.5])
def test_case_18_a_strength_that_civitai_cannot_read_is_still_ours(client: Client, strength: float) -> None:
    (file,), _ = client.predict(
        prompt="1girl",
        loras=[{"lora": "nano-airbrush", "strength": strength}],
        seed=4,
        steps=1,
        api_name="/generate",
    )
    assert f"<lora:nano-airbrush:{strength:g}>" in png_metadata.read_infotext(Path(file)).fields["prompt"]
    assert_infotext(Path(file).read_bytes(), 4, ("nano-airbrush", "0.5") if strength > 0 else None)
