"""A card that people have edited, published again: what they wrote stays, byte for byte."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from core.publish.card_merge import mark_section, merge_card
from core.publish.push import preview_repo
from core.schema.errors import UserError
from tests.hub.server_state import Hub
from tests.publish.test_card import EXAMPLE, REPORT
from tests.publish.test_push import ANN, bundle_files

SECTION = mark_section("# Soft\n\n<Gallery />\n\nMeasured.", "soft.safetensors")
CARD = f"""---
license: apache-2.0
tags:
- sweetspot
- lora
instance_prompt: soft
widget:
- text: 1girl
  output:
    url: images/soft/01.png
---

{SECTION}
"""
EDITED = """---
# made with care
tags:
- not-for-all-audiences  # the Hub hides it
- lora
language:
  - en
  - ja
license: mit
my_key: {a: 1}
widget:
- text: mine
  output:
    url: own.png
---
My notes come first.\r
<!-- sweetspot: begin soft.safetensors -->
old
<!-- sweetspot: end soft.safetensors -->

## Thanks

- to   everybody
"""


def read_front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_people_wrote_stays_and_the_part_is_renewed() -> None:
    merged = merge_card(CARD, EDITED, "soft.safetensors", "images/soft")
    for kept in (
        "# made with care\n",
        "language:\n  - en\n  - ja\n",
        "my_key: {a: 1}\n",
        "---\nMy notes come first.\r\n",
        "\n\n## Thanks\n\n- to   everybody\n",
    ):
        assert kept in merged
    front = read_front(merged)
    assert front["tags"] == ["not-for-all-audiences", "lora", "sweetspot"]
    assert [each["output"]["url"] for each in front["widget"]] == ["own.png", "images/soft/01.png"]
    assert front["license"] == "apache-2.0", "what is asked for now"
    assert merged.count("<!-- sweetspot: begin") == 1
    assert "old" not in merged
    assert "Measured." in merged
    assert merge_card(CARD, merged, "soft.safetensors", "images/soft") == merged, "again is the same"


def test_a_second_lora_gets_a_part_of_its_own() -> None:
    second = CARD.replace("soft", "hard").replace("# Soft", "# Hard").replace("apache-2.0", "mit")
    merged = merge_card(second, CARD, "hard.safetensors", "images/hard")
    assert merged.count("<!-- sweetspot: begin") == 2
    assert "# Soft" in merged
    assert "# Hard" in merged
    assert merged.count("<Gallery />") == 1, "the Hub draws one of all examples"
    front = read_front(merged)
    assert (front["instance_prompt"], front["license"]) == ("soft", "apache-2.0"), "the first one's"
    assert len(front["widget"]) == 2
    first_again = merge_card(CARD.replace("Measured.", "Anew."), merged, "soft.safetensors", "images/soft")
    assert first_again.split("---\n")[2] == merged.split("---\n")[2].replace("Measured.", "Anew.", 1)


@pytest.mark.parametrize(
    "there", ["# Mine", "no front matter\n", "<!-- sweetspot: begin soft.safetensors -->\nx"]
)
def test_a_card_without_a_part_keeps_everything(there: str) -> None:
    merged = merge_card(CARD, there, "soft.safetensors", "images/soft")
    assert there.rstrip() in merged
    assert "Measured." in merged
    assert ModelCard(merged).data.license == "apache-2.0"


@pytest.mark.parametrize("front", ["a: [", "{tags: [x]}", "- a", "? tags\n: [x]", "[" * 5000])
def test_front_matter_that_cannot_be_read_is_not_replaced(front: str) -> None:
    with pytest.raises(UserError, match=r"^repo: the front matter of its README\.md cannot be read"):
        merge_card(CARD, f"---\n{front}\n---\n# Mine\n", "soft.safetensors", "images/soft")


@pytest.mark.parametrize("tags", ['"tags": [mine]', "'tags':\n- mine", "tags : [mine]"])
def test_a_key_is_written_once_however_it_is_spelled(tags: str) -> None:
    merged = merge_card(CARD, f"---\n{tags}\n---\n# Mine\n", "soft.safetensors", "images/soft")
    assert read_front(merged)["tags"] == ["mine", "sweetspot", "lora"]
    assert merged.count("tags") == 1


def test_a_licence_that_is_gone_leaves_no_name_and_no_link() -> None:
    there = CARD.replace("license: apache-2.0", "license: other\nlicense_name: own\nlicense_link: LICENSE")
    merged = merge_card(CARD, there, "soft.safetensors", "images/soft")
    assert merged == CARD


@pytest.mark.parametrize(
    ("card", "why"), [(b"\xff\xfe", "is not UTF-8"), (b"x" * (2**20 + 1), "the limit is")]
)
def test_a_card_that_is_no_text_or_too_long_is_told(
    hub_server: Hub, tmp_path: Path, card: bytes, why: str
) -> None:
    HfApi(token=ANN).create_repo("ann/soft")
    hub_server.repos["ann/soft"].add_commit("by git", {"README.md": card})
    with pytest.raises(UserError, match=rf"^repo: ann/soft's README\.md .*{why}"):
        bundle_files(tmp_path).compare()


def test_a_repository_without_a_card_is_compared(hub_server: Hub, tmp_path: Path) -> None:
    HfApi(token=ANN).create_repo("ann/soft")
    HfApi(token=ANN).upload_file(path_or_fileobj=b"x", path_in_repo="mine.bin", repo_id="ann/soft")
    told = bundle_files(tmp_path).compare()
    assert (told.is_ours, told.card_change) == (False, "")


def test_on_the_hub_an_edited_card_is_merged_and_two_loras_share_a_repository(
    hub_server: Hub, tmp_path: Path
) -> None:
    first = bundle_files(tmp_path / "first", sweep=[REPORT])
    first.push()
    card = hub_server.list_files("ann/soft")["README.md"].decode()
    edited = card.replace("tags:\n", "tags:\n- not-for-all-audiences\n") + "\n## My notes\n\nMind the halo.\n"
    HfApi(token=ANN).upload_file(
        path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="ann/soft"
    )
    told = bundle_files(tmp_path / "anew", title="Softer", sweep=[REPORT]).compare()
    assert told.is_ours
    assert "-# nano-airbrush" in told.card_change.splitlines()
    assert "+# Softer" in told.card_change.splitlines()
    assert "Mind the halo." not in "".join(line for line in told.card_change.splitlines() if line[:1] in "+-")
    save_file(load_file(EXAMPLE), tmp_path / "hard.safetensors")
    bundle_files(tmp_path / "second", lora=tmp_path / "hard.safetensors").push()
    there = hub_server.list_files("ann/soft")
    for path, file in first.files.items():
        if path != "README.md":
            assert there[path] == file.read_bytes(), f"{path} of the first LoRA was replaced"
    both = there["README.md"].decode()
    assert edited.split("---\n", 2)[2].rstrip() in both, "every byte of what was there"
    assert "not-for-all-audiences" in (ModelCard(both).data.tags or [])
    assert "# hard" in both


def test_a_preview_without_a_hub_shows_the_card_and_says_so(hub_server: Hub, tmp_path: Path) -> None:
    made = bundle_files(tmp_path)
    hub_server.fail("GET /api/models/ann/soft", "503", times=9)
    told = preview_repo(made.publication, made.files, False)
    assert {change.status for change in told.changes} == {"not compared"}
    assert told.unknown.startswith("ann/soft cannot be compared: ")
    hub_server.faults.clear()
    hub_server.fail("GET /api/models/ann/soft", "403 gated", times=9)
    with pytest.raises(UserError, match="it is gated"):
        preview_repo(made.publication, made.files, False)
