"""A publication's card: YAML that the Hub reads, and a body with what was measured.

huggingface_hub's own record writes the YAML. All words of a person or a file stand in the card as
text: nothing in them becomes YAML, Markdown or HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from core.publish.card_merge import GALLERY, mark_section
from core.publish.licences import find_licence
from core.publish.plan import Publication
from core.sweep.calibration import describe_calibration
from core.sweep.character import format_character
from core.sweep.field_check import describe_field_check
from core.sweep.words import format_interval
from core.system.markdown import escape_cell, escape_markdown

REPO_TAG = "sweetspot"
"""The tag of repositories that Sweetspot made."""
CARD_TAGS = (REPO_TAG, "text-to-image", "diffusers", "lora", "stable-diffusion-xl", "template:sd-lora")
MAX_CAPTION_TAGS = 30


def render_card(
    publication: Publication, pictures: Mapping[str, str], strips: Sequence[str] = (), sha256: str = ""
) -> str:
    """Return the text of README.md.

    `pictures` is path in the repository -> prompt; `strips` are paths of pictures from strength 0
    to breakdown; `sha256` is that of the LoRA file.
    """
    p = publication
    parts = [
        f"# {escape_cell(p.title)}",
        GALLERY if pictures else "",
        escape_markdown(p.description),
        _render_trigger(p),
        _render_sweeps(p, strips),
        _render_transfer(p.transfer) if p.transfer else "",
        _render_usage(p),
        _render_training(p, sha256),
        _render_licence(p),
    ]
    section = mark_section("\n\n".join(part for part in parts if part), p.name)
    return f"---\n{_render_metadata(p, pictures)}\n---\n\n{section}\n"


def _render_metadata(p: Publication, pictures: Mapping[str, str]) -> str:
    # Only a base with a revision is a repository; a local file has no name on the Hub.
    hub = p.base.source if p.base is not None and p.base.revision is not None else None
    is_inherited = p.base is not None and p.licence == p.base.licence
    page = f"https://huggingface.co/{hub}" if hub else None  # which says where its licence stands
    licence = find_licence(p.licence, p.base.licence_link or page if p.base and is_inherited else None)
    made = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=hub,
        base_model_relation="adapter" if hub else None,
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        tags=list(CARD_TAGS),
        instance_prompt=p.trigger or None,
        widget=[{"text": prompt, "output": {"url": path}} for path, prompt in pictures.items()] or None,
    )
    return made.to_yaml(line_break="\n")


def _render_trigger(p: Publication) -> str:
    return (
        f"## Trigger\n\nUse `{_escape_code(p.trigger)}` in the prompt."
        if p.trigger
        else "No trigger word is stated."
    )


def _render_sweeps(p: Publication, strips: Sequence[str]) -> str:
    """Return the section with a row for each base that was measured."""
    if not p.sweeps:
        return "## Where it works\n\nNot measured."
    rows = [
        "| base | the LoRA | from | best | to | visible from | breaks at | confidence | images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in p.sweeps:
        low, high = report["sweet_spot"] or (None, None)
        ends = {
            name: _format_interval(report, name)
            for name in ("sweet_spot_low", "sweet_spot_high", "onset", "breakdown")
        }
        numbers = [
            _format_number(low) + ends["sweet_spot_low"],
            _format_number(report["recommended"]),
            _format_number(high) + ends["sweet_spot_high"],
        ]
        numbers += [
            _format_number(report["onset"]) + ends["onset"],
            _format_number(report["breakdown"]) + ends["breakdown"],
        ]
        pictures = f"prompts: {len(report['prompts'])}, seeds: {', '.join(map(str, report['seeds']))}"
        rows.append(
            f"| {escape_cell(str(report['model']))} | {_name_answer(report)} | {' | '.join(numbers)} "
            f"| {100 * float(report['confidence']):.0f} % | {pictures} |"
        )
    said = [
        f"- {escape_cell(str(report['model']))}: {escape_cell(str(report['why']))}" for report in p.sweeps
    ]
    said += [
        f"- {escape_cell(str(report['model']))}: {escape_cell(remark)}"
        for report in p.sweeps
        for remark in _list_remarks(report)
    ]
    told = (
        "Strengths, with 95 % intervals over prompts and seeds; a dash means not observed. "
        f"Full reports are in `{p.reports}/`."
    )
    curves = [
        f"![Curves on {escape_cell(str(report['model']))}]({p.reports}/curves-{number}.png)"
        for number, report in enumerate(p.sweeps, 1)
    ]
    return "\n\n".join(
        [
            "## Where it works",
            "\n".join(rows),
            "\n".join(said),
            told,
            *curves,
            *(f"![From 0 to breakdown]({path})" for path in strips),
        ]
    )


def _name_answer(report: Mapping[str, Any]) -> str:
    """Return what a sweep found; reports of before there were answers say `works`, or nothing."""
    return report.get("answer") or ("works" if report["sweet_spot"] else "-")


def _list_remarks(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know beside the verdict: its calibration, a check by eye, what it is."""
    check, character = report.get("field_check"), report["character"]
    remarks = [
        describe_calibration(str(report["model"])),
        describe_field_check(check) if check else None,
        f"what it is: {format_character(character)}" if character else None,
    ]
    return [remark for remark in remarks if remark]


def _format_interval(report: Mapping[str, Any], name: str) -> str:
    ends = report.get("intervals", {}).get(name)
    return f" ({format_interval(ends)})" if ends else ""


def _format_number(value: Any) -> str:
    return "-" if value is None else f"{float(value):g}"


def _render_transfer(report: Mapping[str, Any]) -> str:
    rows = ["| LoRA | base | verdict | strength relative to home | why |", "|---|---|---|---|---|"]
    for pair in report["per_pair"]:
        times = "-" if pair["needs_times"] is None else f"x{float(pair['needs_times']):.2g}"
        rows.append(
            f"| {escape_cell(str(pair['lora']))} | {escape_cell(str(pair['model']))} "
            f"| {escape_cell(str(pair['verdict'] or '-'))} | {times} | {escape_cell(str(pair['why']))} |"
        )
    return "\n\n".join(["## On other bases", "\n".join(rows), escape_cell(str(report["rule"]))])


def _render_usage(p: Publication) -> str:
    best = next((float(report["recommended"]) for report in p.sweeps if report["recommended"]), None)
    strength = best if best is not None else p.run.settings.expected_strength if p.run else 1.0
    told = (
        "measured"
        if best is not None
        else "expected by the recipe, not measured"
        if p.run
        else "not measured"
    )
    base = p.base.source if p.base is not None and p.base.revision is not None else "path/to/base"
    return f"""## How to use

Strength **{strength:g}** ({told}).

- A1111, Forge: put `{p.name}` into `models/Lora` and write `<lora:{p.stem}:{strength:g}>`; \
the `.json` next to it sets that weight.
- ComfyUI: put it into `models/loras`; Load LoRA with `strength_model` {strength:g}.
- diffusers:

```python
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{p.repo}", weight_name="{p.name}", adapter_name="it")
pipeline.set_adapters(["it"], [{strength:g}])
```"""


def _render_training(p: Publication, sha256: str) -> str:
    rows = [
        f"- rank {p.file.rank}, alpha {p.file.rank * p.file.scale:g}, "
        f"{' and '.join(p.file.components)}, {p.file.kind}"
    ]
    rows += [f"- `{p.name}`, sha256 `{sha256}`"] if sha256 else []
    rows += [f"- from `{_escape_code(p.origin)}`"] if p.origin else []
    rows += (
        [f"- base `{_escape_code(p.base.source)}` at commit `{p.base.revision}`"]
        if p.base is not None and p.base.revision
        else []
    )
    included = f", included in `dataset/{p.stem}/`" if p.dataset else ""
    rows += [f"- {p.images} images{included}"] if p.images else []
    if p.run:
        made = p.run.settings
        rows += [
            f"- recipe {escape_cell(p.run.recipe)} on {escape_cell(p.run.model)}: "
            f"{made.steps} steps of {made.total_batch_size} images at {made.resolution} pixels"
        ]
        rows += [
            f"- {made.optimizer}, learning rate {made.learning_rate:g}, {made.scheduler}, {made.targets}"
        ]
    if p.tags:
        rows.append(
            "- caption tags: "
            + ", ".join(
                f"{escape_cell(tag)} ({count})" for tag, count in list(p.tags.items())[:MAX_CAPTION_TAGS]
            )
        )
    return "\n".join(["## How it was made", "", *rows])


def _render_licence(p: Publication) -> str:
    notice = escape_cell(p.base.notice) if p.base is not None and p.base.notice else ""
    base = f" Note on its base, {escape_cell(p.base.title)}: {notice}" if notice and p.base else ""
    return f"## Licence\n\n{escape_cell(p.licence)}.{base}"


def _escape_code(text: str) -> str:
    """Return text for use in backticks, where nothing is escaped: one line, no backtick."""
    return " ".join(text.replace("`", "'").split())
