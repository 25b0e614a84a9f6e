"""`/publish` through gradio_client.

The script of docs/api.md from pictures to a measured LoRA, and what a client gets wrong.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from core.nano.lessons import make_airbrush_set
from tests.hub.server_state import Hub
from tests.publish.test_card import EXAMPLE, REPORT

API_PAGE = Path(__file__).parent.parent.parent / "docs" / "api.md"


def test_a_dry_run_shows_everything_and_sends_nothing(client: Client, hub_server: Hub) -> None:
    told = client.predict(
        lora="nano-airbrush", repo="ann/soft", sweep=REPORT, dry_run=True, api_name="/publish"
    )
    assert (told["url"], told["commit"]) == (None, None)
    assert {each["what"] for each in told["files"]} == {"new"}
    assert {"README.md", "nano-airbrush.safetensors", "reports/nano-airbrush/sweep-1.json"} <= {
        each["file"] for each in told["files"]
    }
    assert ModelCard(told["card"]).data.library_name == "diffusers"
    assert "| nano | works | 2 (1.5 to 2.5) | 2.75 |" in told["card"]
    assert not [
        one for one in hub_server.requests if one.method in ("POST", "PUT") or "authorization" in one.headers
    ]


def test_the_machines_login_is_used_only_when_asked_for(client: Client, hub_server: Hub) -> None:
    Path(constants.HF_TOKEN_PATH).write_text("hf_ann")
    with pytest.raises(AppError, match="login: nobody is logged in"):
        client.predict(lora=handle_file(EXAMPLE), repo="ann/soft", api_name="/publish")
    assert not [one for one in hub_server.requests if "authorization" in one.headers]
    told = client.predict(lora=handle_file(EXAMPLE), repo="ann/soft", use_login=True, api_name="/publish")
    assert told["commit"] == hub_server.list_commits("ann/soft")[-1].oid
    assert "hf_ann" not in str(told)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"repo": "../soft"}, "repo: "),
        ({"lora": None}, "lora: choose a LoRA"),
        ({"repo": "ann/soft.git"}, "repo: 'ann/soft.git' is not valid"),
        ({"repo": "ann/soft-"}, "repo: 'ann/soft-' is not valid"),
        ({"repo": "soft"}, "repo: 'soft' is not valid. Use owner/name"),
        ({"title": 5}, "title: 5 is not text"),
        ({"pictures": False}, "pictures: use a list of uploaded images"),
        ({"run": "0" * 32}, "run: "),
        ({"sweep": {**REPORT, "confidence": -5}}, "sweep: use the report of a sweep"),
        ({"sweep": {**REPORT, "recommended": 1e308}}, "sweep: use the report of a sweep"),
        ({"sweep": {**REPORT, "recommended": None}}, "sweep: use the report of a sweep"),
        ({"sweep": {**REPORT, "sweet_spot": [3, 2]}}, "sweep: use the report of a sweep"),
        ({"sweep": {**REPORT, "seeds": [1.5]}}, "sweep: use the report of a sweep"),
        (
            {"sweep": {**REPORT, "sha256": "0" * 64}},
            "sweep: nano-airbrush was measured, which is not the file to publish",
        ),
        ({"sweep": {**REPORT, "noise_floor": 10**400}}, "sweep: use the report of a sweep"),
        ({"sweep": {**REPORT, "curve": [{"strength": None}]}}, "sweep: use the report of a sweep"),
        ({"pictures": [{"path": "/etc/passwd"}]}, "pictures: use an uploaded file."),
        ({"description": "x" * 10**6}, "description: 1,000,000 characters are too many"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(
    client: Client, hub_server: Hub, said: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((AppError, ValueError)) as error:
        client.predict(**{"lora": "nano-airbrush", "repo": "ann/soft", **said}, api_name="/publish")
    assert sentence in str(error.value)
    assert not hub_server.requests, "nothing is asked of the Hub"


EVIL = "x\nlicense: mit\n---\n<script>alert(1)</script>"


@pytest.mark.parametrize("said", ["trigger", "title", "description", "license", "the file"])
def test_case_10_words_change_nothing_of_the_card_but_themselves(
    client: Client, hub_server: Hub, tmp_path: Path, said: str
) -> None:
    told = {
        "modelspec.trigger_phrase": EVIL,
        "modelspec.title": EVIL,
        "ss_tag_frequency": json.dumps({"10_x": {EVIL: 9}}),
    }
    save_file(load_file(EXAMPLE), tmp_path / "soft.safetensors", told if said == "the file" else {})
    asked = {"repo": "ann/soft", "license": "apache-2.0", "trigger": "soft", "title": "Soft", "dry_run": True}
    asked |= {said: EVIL} if said != "the file" else {"trigger": None, "title": None}
    shown = client.predict(lora=handle_file(tmp_path / "soft.safetensors"), **asked, api_name="/publish")[
        "card"
    ]
    found = ModelCard(shown)
    assert found.data.license == ("other" if said == "license" else "apache-2.0")
    assert found.data.to_dict()["instance_prompt"] == {
        "trigger": EVIL,
        "the file": " ".join(EVIL.split()),
    }.get(said, "soft")
    name = "x-license-mit-script-alert-1-script" if said == "license" else None
    assert found.data.to_dict().get("license_name") == name
    assert shown.count("\n---\n") == 1, "the front matter ends twice"
    outside = "".join(part for i, part in enumerate(found.text.split("`")) if i % 2 == 0)
    assert "<script" not in outside.replace("\\<", "")


def test_the_script_of_the_docs_goes_from_pictures_to_a_measured_lora(
    studio: str,
    hub_server: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = next(
        block
        for block in re.findall(r"```python\n(.*?)```", API_PAGE.read_text(), re.DOTALL)
        if "/publish" in block
    )
    assert len(script.splitlines()) <= 25
    (tmp_path / "pictures").mkdir()
    for i, (picture, caption) in enumerate(make_airbrush_set(4)):
        picture.save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(caption)
    monkeypatch.chdir(tmp_path)
    quick = script.replace("http://127.0.0.1:7860", studio).replace(
        'recipe="nano-quick"', 'recipe="nano-quick", overrides={"steps": 4, "preview_every": 0}'
    )
    exec(
        compile(
            quick.replace('strengths="0-3.5 (+0.5)"', 'strengths="0, 1, 2", seeds="1, 2"'),
            "README.md",
            "exec",
        ),
        {},
    )
    printed = capsys.readouterr().out
    assert "## Where it works" in printed
    assert "mystyle" in printed
    assert "/strip-1.png" in printed, "the sweep's pictures are at hand"
    assert not hub_server.repos, "a dry run sends nothing"
