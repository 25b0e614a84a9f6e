"""What a prompt asks for and does not get is said before the picture is made."""

import pytest

from core.generate.notes import list_warnings
from core.generate.request import PictureForm, find_form_problems


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        (
            {"prompt": "a <hypernet:b:1>"},
            "prompt: ignored <hypernet:b:1>; of such tags, only <lora:…> applies.",
        ),
        (
            {"prompt": "a", "detail": {"prompt": "b <c:1>"}},
            "detail.prompt: ignored <c:1>; of such tags, only <lora:…> applies.",
        ),
        (
            {"prompt": "a", "negative": "<lora:b:1>"},
            "negative: ignored <lora:b:1>; LoRAs belong in the prompt.",
        ),
        ({"prompt": "(a:12)"}, "prompt: a weight beyond 10 counts as 10."),
        (
            {"prompt": "cat, :3"},
            "prompt: ':3' at its end is text here; A1111 takes it as the strength of the whole prompt.",
        ),
    ],
)
def test_what_does_not_reach_the_picture_is_a_warning(fields: dict, warning: str) -> None:
    assert list_warnings(PictureForm(**fields, preset="nano")) == [warning]


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("<lora:nano-airbrush:0,8>", "'0,8' is no strength; write 0.8"),
        ("<lyco:nano-airbrush:>", "a strength is empty"),
        ("<lora:nano-airbrush:1:NCNF>", "'NCNF' is not valid"),
        ("<lora:nano-airbrush:1:" + "1," * 15 + "1>", "16 block weights"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "detail.prompt"])
def test_a_lora_tag_that_is_not_understood_is_refused_with_what_is_wrong(
    tag: str, why: str, field: str
) -> None:
    """It once vanished, and people got a picture without their LoRA."""
    own = {"prompt": tag} if field == "prompt" else {"prompt": "a", "detail": {"prompt": tag}}
    (sentence,) = find_form_problems({**own, "preset": "nano"}).values()
    assert sentence.startswith(f"{field}: ") or field == "prompt"
    assert why in sentence
