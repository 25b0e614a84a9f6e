"""The named endpoints through gradio_client: what they return, what they refuse, and nothing else."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, ValidationError
from PIL import Image

from core import record

SNAPSHOT = Path(__file__).parent / "api_snapshot.json"


@pytest.fixture(scope="module")
def client(studio: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(studio, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def test_generate_returns_pictures_and_a_report(client: Client) -> None:
    files, report = client.predict(prompt="1girl, blue hair, smile, white background", seed=7, steps=4, count=2, width=192, api_name="/generate")
    assert report["seeds"] == [7, 8]
    assert report["size"] == [192, 128]
    assert (report["model"], report["loras"], report["warnings"]) == ("nano", [], [])
    assert report["negative"] == "low quality", "what is not given is the preset's"
    assert report["seconds"] > 0
    for file, seed in zip(files, report["seeds"], strict=True):
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.size == (192, 128)
            assert picture.info["parameters"].startswith("1girl, blue hair")
        fields = record.read_picture(Path(file)).fields
        assert (fields["seed"], fields["steps"], fields["cfg"], fields["sampler"]) == (seed, 4, 5.0, "Euler a")


def test_the_same_seed_gives_the_same_file(client: Client) -> None:
    pixels = []
    for _ in range(2):
        (file,), _ = client.predict(prompt="1girl", seed=3, steps=2, api_name="/generate")
        with Image.open(file) as picture:
            pixels.append(picture.tobytes())
    assert pixels[0] == pixels[1]


def test_read_picture_gives_back_what_generate_wrote(client: Client) -> None:
    (file,), _ = client.predict(prompt="1girl, (smile:1.2)", negative="sketch", seed=11, steps=2, cfg=4.5, api_name="/generate")
    fields = client.predict(picture=handle_file(file), api_name="/read_picture")
    expected = {
        "prompt": "1girl, (smile:1.2)",
        "negative": "sketch",
        "model": "nano",
        "width": 128,
        "height": 128,
        "steps": 2,
        "cfg": 4.5,
        "sampler": "Euler a",
        "seed": 11,
    }
    assert {name: fields[name] for name in expected} == expected
    assert "Sweetspot" in fields["unused"]


def test_read_picture_refuses_what_is_none(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(AppError, match="cannot be read as a PNG, JPEG or WebP"):
        client.predict(picture=handle_file(tmp_path / "text.png"), api_name="/read_picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(AppError, match="holds no settings"):
        client.predict(picture=handle_file(tmp_path / "plain.png"), api_name="/read_picture")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"width": 1001}, "width: 1001 is not allowed; it takes a whole number from 64 to 2048 in steps of 32"),
        ({"steps": 0}, "steps: 0 is not allowed"),
        ({"steps": 10**6}, "steps: 1000000 is not allowed"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is not allowed"),
        ({"prompt": ""}, "prompt: it is empty"),
        ({"prompt": "x" * 4_000_000}, "prompt: 4,000,000 characters are too many"),
        ({"preset": "nothing"}, "preset: 'nothing' is unknown; it takes nano"),
        ({"count": 1000}, "count: 1000 is not allowed; it takes a whole number from 1 to 16"),
    ],
)
def test_bad_values_are_refused_before_the_queue(client: Client, values: dict, says: str) -> None:
    with pytest.raises((ValidationError, ValueError, AppError)) as caught:
        client.predict(**{"prompt": "1girl", **values}, api_name="/generate")
    assert says in str(caught.value)


def test_nan_in_a_raw_request_is_refused(client: Client) -> None:
    """gradio_client does not send NaN; a hostile client may."""
    body = b'{"data": ["1girl", "nano", null, null, null, null, NaN, null, null]}'
    request = urllib.request.Request(f"{client.src}gradio_api/call/generate", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert "cfg: nan is not allowed; it takes a number from 1 to 30" in caught.value.read().decode()


def test_a_model_that_cannot_be_had_is_a_sentence_and_nano_goes_on(client: Client) -> None:
    with pytest.raises(AppError, match=r"SDXL base 1.0 .* is not on this machine and the Hub cannot be reached; nano stays loaded"):
        client.predict(prompt="a cat", preset="sdxl-base", steps=2, api_name="/generate")
    files, _ = client.predict(prompt="1girl", steps=2, api_name="/generate")
    assert len(files) == 1


def test_a_value_outside_the_presets_advice_is_a_warning(client: Client) -> None:
    _, report = client.predict(prompt="1girl, " + "blue hair, " * 40, steps=2, cfg=12, api_name="/generate")
    assert report["warnings"] == [
        "cfg: 12 is outside the 1 to 10 that nano, the embedded model is made for.",
        "prompt: 124 tokens; the model reads the first 75.",
    ]


def test_the_public_interface_is_what_it_was(client: Client) -> None:
    api: Any = client.view_api(return_format="dict", print_info=False)
    seen = {
        name: {
            "takes": {p["parameter_name"]: p["parameter_default"] if p["parameter_has_default"] else "required" for p in end["parameters"]},
            "returns": [r["component"] for r in end["returns"]],
        }
        for name, end in api["named_endpoints"].items()
    }
    assert not api["unnamed_endpoints"]
    assert seen == json.loads(SNAPSHOT.read_text()), "the API changed: if that is meant, write it into tests/api_snapshot.json"


def test_the_page_keeps_its_plumbing_private(client: Client) -> None:
    with pytest.raises(ValueError, match="Cannot find a function"):
        client.predict(api_name="/_make")
