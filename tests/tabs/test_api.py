"""The named endpoints through gradio_client: what they return and what they refuse."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, ValidationError
from PIL import Image
from safetensors.torch import save_file

from core.models import lora_facts
from core.prompts import png_metadata
from core.system.device import is_zerogpu
from tests.models.library import write_lora

SNAPSHOT = Path(__file__).parent.parent / "api_snapshot.json"


def test_generate_returns_pictures_and_a_report(client: Client) -> None:
    files, report = client.predict(
        prompt="1girl, blue hair, smile, white background",
        seed=7,
        steps=4,
        count=2,
        width=192,
        api_name="/generate",
    )
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
        fields = png_metadata.read_infotext(Path(file)).fields
        assert (fields["seed"], fields["steps"], fields["cfg"], fields["sampler"]) == (
            seed,
            4,
            5.0,
            "Euler a",
        )


def test_case_17_the_same_seed_gives_the_same_file(client: Client) -> None:
    pixels = []
    for _ in range(2):
        (file,), _ = client.predict(prompt="1girl", seed=3, steps=2, api_name="/generate")
        with Image.open(file) as picture:
            pixels.append(picture.tobytes())
    assert pixels[0] == pixels[1]


def test_sampler_schedule_clip_skip_and_cfg_rescale_can_be_set(client: Client) -> None:
    (file,), _ = client.predict(
        prompt="1girl", seed=3, steps=2, sampler="DPM++ 2M Karras", clip_skip=1, cfg_rescale=0.5,
        api_name="/generate",
    )  # fmt: skip
    fields = client.predict(picture=handle_file(file), api_name="/read_picture")
    asked = {"sampler": "DPM++ 2M", "schedule": "Karras", "clip_skip": 1, "cfg_rescale": 0.5}
    assert {name: fields[name] for name in asked} == asked


def test_read_picture_gives_back_what_generate_wrote(client: Client) -> None:
    (file,), _ = client.predict(
        prompt="1girl, (smile:1.2)", negative="sketch", seed=11, steps=2, cfg=4.5, api_name="/generate"
    )
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
    assert (fields["tool"], fields["loras"], fields["lost"]) == ("Sweetspot", [], [])


def test_read_picture_refuses_what_is_none(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(AppError, match="cannot be read as a PNG, JPEG, WebP or AVIF"):
        client.predict(picture=handle_file(tmp_path / "text.png"), api_name="/read_picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(AppError, match="contains no settings"):
        client.predict(picture=handle_file(tmp_path / "plain.png"), api_name="/read_picture")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"width": 1001}, "width: 1001 is not valid. Use a whole number from 64 to 2048 in steps of 8"),
        ({"steps": 0}, "steps: 0 is not valid"),
        ({"sampler": "Euler z"}, "sampler: 'Euler z' is unknown. Use one of: Euler a, "),
        ({"schedule": "Linear"}, "schedule: 'Linear' is unknown. Use one of: Automatic, "),
        ({"sampler": "LCM", "schedule": "Sweetspot 0.1"}, "schedule: 'Sweetspot 0.1' is not for LCM"),
        ({"steps": 10**6}, "steps: 1000000 is not valid"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is not valid"),
        ({"prompt": ""}, "prompt: the prompt is empty"),
        ({"prompt": "x" * 4_000_000}, "prompt: 4,000,000 characters are too many"),
        ({"preset": "nothing"}, "preset: 'nothing' is unknown. Use one of: nano"),
        ({"count": 1000}, "count: 1000 is not valid. Use a whole number from 1 to 16"),
    ],
)
def test_case_01_bad_values_are_refused_before_the_queue(client: Client, values: dict, says: str) -> None:
    with pytest.raises((ValidationError, ValueError, AppError)) as caught:
        client.predict(**{"prompt": "1girl", **values}, api_name="/generate")
    assert says in str(caught.value)


def test_case_01_nan_in_a_raw_request_is_refused(client: Client) -> None:
    """gradio_client does not send NaN; a hostile client may."""
    takes = json.loads(SNAPSHOT.read_text())["/generate"]["takes"]
    values = {"prompt": "1girl", "cfg": float("nan")}
    body = json.dumps({"data": [values.get(name) for name in takes]}).encode()
    request = urllib.request.Request(
        f"{client.src}gradio_api/call/generate", body, {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert "cfg: nan is not valid. Use a number from 1 to 30" in caught.value.read().decode()


def test_a_model_that_cannot_be_had_is_a_sentence_and_nano_goes_on(client: Client) -> None:
    with pytest.raises(
        AppError,
        match=r"stable-diffusion-xl-base-1\.0 cannot be downloaded: "
        r"Hugging Face is unreachable; nano is still loaded",
    ):
        client.predict(prompt="a cat", preset="sdxl-base", steps=2, api_name="/generate")
    files, _ = client.predict(prompt="1girl", steps=2, api_name="/generate")
    assert len(files) == 1


def test_a_value_outside_the_presets_advice_is_a_warning(client: Client) -> None:
    asked = {"steps": 2, "cfg": 12, "sampler": "Euler Karras", "schedule": "Normal"}
    _, report = client.predict(prompt="1girl, " + "blue hair, " * 40, **asked, api_name="/generate")
    assert report["warnings"] == [
        "cfg: 12 is outside the range of 1 to 10 recommended for nano (built-in, 128 px).",
        "schedule: Normal is used, not Karras of 'Euler Karras'.",
        "prompt: 124 tokens; over 75, the prompt is split into chunks.",
    ]


def test_the_public_interface_is_what_it_was(client: Client) -> None:
    api: Any = client.view_api(return_format="dict", print_info=False)
    seen = {
        name: {
            "takes": {
                p["parameter_name"]: p["parameter_default"] if p["parameter_has_default"] else "required"
                for p in end["parameters"]
            },
            "returns": [r["component"] for r in end["returns"]],
        }
        for name, end in api["named_endpoints"].items()
    }
    assert not api["unnamed_endpoints"]
    assert seen == json.loads(SNAPSHOT.read_text()), (
        "the API changed: if that is meant, write it into tests/api_snapshot.json"
    )


def test_the_page_keeps_its_plumbing_private(client: Client) -> None:
    with pytest.raises(ValueError, match="Cannot find a function"):
        client.predict(api_name="/_make")


def test_the_whole_recipe_is_one_call(client: Client) -> None:
    (file,), report = client.predict(
        prompt="1girl, (blue hair:1.2), portrait", preset="nano-baxl", seed=5, steps=6, api_name="/generate"
    )
    assert report["size"] == [256, 256]
    assert report["prompt"].startswith("1girl, (blue hair:1.2), portrait, "), (
        "the tags that were added stand behind"
    )
    fields = png_metadata.read_infotext(Path(file)).fields
    assert fields["expanded"] == "1girl, (blue hair:1.2), portrait"
    assert (fields["width"], fields["hires"]["upscaler"], fields["hires"]["factor"]) == (
        128,
        "nano DAT x2",
        2.0,
    )
    assert fields["detail"]["detector"] == "nano face"
    with Image.open(file) as picture:
        assert picture.size == (256, 256)


@pytest.mark.parametrize(
    ("stages", "size"),
    [
        ({"hires": {"factor": 1.5, "steps": 3}}, (192, 192)),
        ({"hires": {"upscaler": "Latent", "factor": 1.25, "denoise": 0.6}}, (160, 160)),
        ({"hires": {"upscaler": "Lanczos", "denoise": 0, "smooth": 0.5}}, (256, 256)),
        ({"detail": True}, (128, 128)),
        ({"grain": {"amount": 0.1}}, (128, 128)),
        ({"expand": {"max_tags": 2}}, (128, 128)),
    ],
)
def test_each_stage_by_itself(client: Client, stages: dict, size: tuple[int, int]) -> None:
    prompt = "1girl, blue hair, portrait"
    (plain,), _ = client.predict(prompt=prompt, seed=5, steps=6, api_name="/generate")
    (file,), report = client.predict(prompt=prompt, seed=5, steps=6, **stages, api_name="/generate")
    assert report["size"] == list(size)
    with Image.open(file) as picture, Image.open(plain) as before:
        assert picture.size == size
        assert picture.tobytes() != before.tobytes()
    (name,) = stages
    settings = stages[name] if isinstance(stages[name], dict) else {}
    if name != "expand":
        assert settings.items() <= png_metadata.read_infotext(Path(file)).fields[name].items()
    else:
        assert report["prompt"].count(",") == prompt.count(",") + 2


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({"hires": {"factor": 9}}, "hires.factor: 9 is not valid. Use a number from 1 to 4"),
        (
            {"hires": {"upscaler": "../../etc/passwd"}},
            "hires.upscaler: '../../etc/passwd' is unknown. Use one of: DAT x2",
        ),
        ({"hires": {"size": 2}}, "hires: 'size' is not a setting; the settings are "),
        ({"detail": {"detector": "face.pt"}}, "detail.detector: 'face.pt' is unknown"),
        ({"detail": "yes"}, "detail: 'yes' is not valid"),
        ({"expand": {"ban": ["(a+)+"]}}, "ban: '(a+)+' could take too long"),
        ({"grain": {"amount": 9}}, "grain.amount: 9 is not valid"),
    ],
)
def test_bad_stages_are_refused_before_the_queue(client: Client, stages: dict, says: str) -> None:
    with pytest.raises((ValidationError, ValueError, AppError)) as caught:
        client.predict(prompt="1girl", **stages, api_name="/generate")
    assert says in str(caught.value)


def test_a_tool_that_cannot_be_had_is_a_sentence(client: Client) -> None:
    with pytest.raises(
        AppError, match="upscaler: w-e-w/DAT cannot be downloaded: Hugging Face is unreachable"
    ):
        client.predict(prompt="1girl", steps=2, hires={"upscaler": "DAT x2"}, api_name="/generate")


def test_expand_prompt_adds_tags(client: Client) -> None:
    said = client.predict(
        prompt="1girl, [smile|frown]", ban=".*halo.*\nportrait", max_tags=5, seed=3, api_name="/expand_prompt"
    )
    assert said["prompt"] == ", ".join(["1girl, [smile|frown]", *said["added"]])
    assert 0 < len(said["added"]) <= 5
    assert not [tag for tag in said["added"] if "halo" in tag or tag == "portrait"]
    assert said["tokens"] > 4
    with pytest.raises((ValidationError, ValueError, AppError), match=r"expand\.length: 'huge' is unknown"):
        client.predict(prompt="1girl", length="huge", api_name="/expand_prompt")


def test_case_17_a_picture_is_made_again_from_what_it_says(client: Client) -> None:
    (file,), _ = client.predict(
        prompt="1girl, (red hair:1.2), portrait",
        seed=8,
        steps=6,
        hires=True,
        detail=True,
        grain=True,
        api_name="/generate",
    )
    fields = client.predict(picture=handle_file(file), api_name="/read_picture")
    asked = {
        name: fields[name]
        for name in (
            "prompt",
            "negative",
            "width",
            "height",
            "steps",
            "cfg",
            "seed",
            "hires",
            "detail",
            "grain",
        )
    }
    (again,), _ = client.predict(**asked, api_name="/generate")
    with Image.open(file) as one, Image.open(again) as other:
        assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small random LoRA for one layer of nano, in kohya's layout, alpha half its rank."""
    file = tmp_path_factory.mktemp("lora") / "my style.safetensors"
    key = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_v"
    torch.manual_seed(0)
    matrices = {
        f"{key}.lora_down.weight": torch.randn(4, 72),
        f"{key}.lora_up.weight": torch.randn(72, 4),
        f"{key}.alpha": torch.tensor(2.0),
    }
    save_file(matrices, file, {"modelspec.trigger_phrase": "mystyle"})
    return file


def test_a_lora_of_ones_own_changes_the_picture(client: Client, lora_file: Path) -> None:
    asked = {"prompt": "1girl", "seed": 5, "steps": 3, "api_name": "/generate"}
    files = {}
    for strength in (None, 0, 1.5):
        lora = {} if strength is None else {"lora_file": handle_file(lora_file), "lora_strength": strength}
        (file,), report = client.predict(**asked, **lora)
        with Image.open(file) as picture:
            files[strength] = (picture.tobytes(), picture.info["parameters"])
        assert [use["strength"] for use in report["loras"]] == ([] if strength is None else [strength])
    assert files[None][0] == files[0][0] != files[1.5][0]
    assert files[1.5][1].startswith("1girl <lora:my_style:1.5>\n")
    assert 'Lora hashes: "' in files[1.5][1]


def test_a_lora_of_another_family_is_in_the_reports_warnings(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"prompt": "1girl <lora:nano-airbrush:1>", "seed": 7, "steps": 1}
    assert client.predict(**asked, api_name="/generate")[1]["warnings"] == []
    monkeypatch.setattr(lora_facts, "find_base_family", lambda model: "Pony")  # no such base is as small
    (warning,) = client.predict(**asked, api_name="/generate")[1]["warnings"]
    assert warning.startswith("nano-airbrush is made for nano, but nano (built-in, 128 px) is of the family")


def test_inspect_lora_tells_what_it_is(client: Client, lora_file: Path) -> None:
    told = client.predict(lora=handle_file(lora_file), api_name="/inspect_lora")
    assert (told["format"], told["rank"], told["alpha"], told["scale"], told["trigger"]) == (
        "kohya",
        4,
        2.0,
        0.5,
        "mystyle",
    )
    assert told["blocks"] == {"OUT01": 1}
    if is_zerogpu():
        assert (told["effective_norm"], told["why"]) == (
            None,
            "The GPU is only available inside a job, so the size of the change was not measured.",
        )
    else:
        assert told["effective_norm"]["OUT01"] > 0
    assert told["expect"].startswith("U-Net only, alpha/rank 1: nothing in the file suggests")
    assert (told["strength"], told["strength_source"]) == (None, None), "nobody has measured it"


def test_inspect_lora_tells_the_strength_of_one_in_the_library(client: Client, shelf: Path) -> None:
    write_lora(shelf / "mine.safetensors")
    (shelf / "mine.json").write_text(json.dumps({"preferred weight": 0.8}))
    told = client.predict(lora="mine", api_name="/inspect_lora")
    assert (told["strength"], told["strength_source"]) == (0.8, "from its sidecar")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"prompt": "1girl <lora:nothing:1>"}, "lora: 'nothing' is not in the LoRA library"),
        ({"loras": [{"lora": "../../etc/passwd"}]}, "lora: '../../etc/passwd' is not in the LoRA library"),
        ({"loras": {"lora": "x"}}, "loras: use a list of tables"),
        ({"loras": [{"lora": "x", "weight": 1}]}, "loras: 'weight' is not a setting"),
    ],
)
def test_bad_loras_are_refused_before_the_queue(client: Client, values: dict, says: str) -> None:
    with pytest.raises((ValidationError, ValueError, AppError)) as caught:
        client.predict(**{"prompt": "1girl", **values}, api_name="/generate")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "lora",
    [
        "/etc/passwd",
        {"path": "/etc/passwd"},
        {"path": "app.py", "meta": {"_type": "gradio.FileData"}},
        7,
        None,
    ],
)
def test_case_11_no_path_of_the_machine_is_opened(client: Client, lora: object) -> None:
    body = json.dumps({"data": [lora]}).encode()
    request = urllib.request.Request(
        f"{client.src}gradio_api/call/inspect_lora", body, {"Content-Type": "application/json"}
    )
    try:
        event = json.loads(urllib.request.urlopen(request, timeout=10).read())["event_id"]
        answer = (
            urllib.request.urlopen(f"{client.src}gradio_api/call/inspect_lora/{event}", timeout=20)
            .read()
            .decode()
        )
    except urllib.error.HTTPError as error:
        answer = f"event: error {error.code}"
    assert "event: error" in answer
    assert "root:" not in answer


def test_a_strength_that_is_not_allowed_is_refused(client: Client, lora_file: Path) -> None:
    with pytest.raises((ValidationError, ValueError, AppError), match="lora_strength: 9 is not valid"):
        client.predict(
            prompt="1girl", lora_file=handle_file(lora_file), lora_strength=9, api_name="/generate"
        )
