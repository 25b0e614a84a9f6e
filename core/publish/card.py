"""A publication's card: YAML that the Hub reads, by huggingface_hub's own record, and a body with what was measured.

All words of a person or a file stand in it as text: nothing that they hold becomes YAML, Markdown or HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from core.markdown import cell, plain
from core.publish.plan import LICENCES, Publication

MARK = "sweetspot"
"""The tag of repositories that were made here."""
TAGS = (MARK, "text-to-image", "diffusers", "lora", "stable-diffusion-xl", "template:sd-lora")
MOST_TAGS = 30  # of the captions


def card(publication: Publication, pictures: Mapping[str, str], strips: Sequence[str] = (), sha256: str = "") -> str:
    """README.md. `pictures`: path in the repository -> prompt; `strips`: paths of pictures from strength 0 to breakdown; `sha256` is the file's."""
    p = publication
    parts = [
        f"---\n{_data(p, pictures)}\n---",
        f"# {cell(p.title)}",
        "<Gallery />" if pictures else "",
        plain(p.description),
        _trigger(p),
        _measured(p, strips),
    ]
    parts += [_transfer(p.transfer) if p.transfer else "", _use(p), _training(p, sha256), _licence(p)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(p: Publication, pictures: Mapping[str, str]) -> str:
    known = p.licence in LICENCES
    hub = p.base.source if p.base is not None and p.base.revision is not None else None  # a file of one's own has no name there
    made = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=hub,
        base_model_relation="adapter" if hub else None,
        license=p.licence if known else "other",
        license_name=None if known else p.licence,
        tags=list(TAGS),
        instance_prompt=p.trigger or None,
        widget=[{"text": prompt, "output": {"url": path}} for path, prompt in pictures.items()] or None,
    )
    return made.to_yaml(line_break="\n")


def _trigger(p: Publication) -> str:
    return f"## Trigger\n\nSay `{_code(p.trigger)}` in the prompt." if p.trigger else "It has no trigger word: its strength is what calls it."


def _measured(p: Publication, strips: Sequence[str]) -> str:
    """The table that no other card has."""
    if not p.sweeps:
        return "## Where it works\n\nNot measured."
    rows = ["| base | works from | best | until | first seen at | breaks at | confidence | pictures |", "|---|---|---|---|---|---|---|---|"]
    for report in p.sweeps:
        low, high = report["sweet_spot"] or (None, None)
        ends = {name: _interval(report, name) for name in ("sweet_spot_low", "sweet_spot_high", "onset", "breakdown")}
        numbers = [_number(low) + ends["sweet_spot_low"], _number(report["recommended"]), _number(high) + ends["sweet_spot_high"]]
        numbers += [_number(report["onset"]) + ends["onset"], _number(report["breakdown"]) + ends["breakdown"]]
        pictures = f"prompts: {len(report['prompts'])}, seeds: {', '.join(map(str, report['seeds']))}"
        rows.append(f"| {cell(str(report['model']))} | {' | '.join(numbers)} | {100 * float(report['confidence']):.0f} % | {pictures} |")
    said = [f"- {cell(str(report['model']))}: {cell(str(report['why']))}" for report in p.sweeps]
    told = "Strengths, with 95 % intervals over the pictures; a dash is what was not seen. Measured, not guessed: the reports lie in `reports/`."
    curves = [f"![Curves on {cell(str(report['model']))}](reports/curves-{number}.png)" for number, report in enumerate(p.sweeps, 1)]
    return "\n\n".join(["## Where it works", "\n".join(rows), "\n".join(said), told, *curves, *(f"![From 0 to breakdown]({path})" for path in strips)])


def _interval(report: Mapping[str, Any], name: str) -> str:
    ends = report.get("intervals", {}).get(name)
    return f" ({float(ends[0]):g} to {float(ends[1]):g})" if ends else ""


def _number(value: Any) -> str:
    return "-" if value is None else f"{float(value):g}"


def _transfer(report: Mapping[str, Any]) -> str:
    rows = ["| LoRA | base | works | strength over that at home | why |", "|---|---|---|---|---|"]
    for pair in report["per_pair"]:
        times = "-" if pair["needs_times"] is None else f"x{float(pair['needs_times']):.2g}"
        rows.append(f"| {cell(str(pair['lora']))} | {cell(str(pair['model']))} | {cell(str(pair['verdict'] or '-'))} | {times} | {cell(str(pair['why']))} |")
    return "\n\n".join(["## On other bases", "\n".join(rows), cell(str(report["rule"]))])


def _use(p: Publication) -> str:
    best = next((float(report["recommended"]) for report in p.sweeps if report["recommended"]), None)
    strength = best if best is not None else p.run.settings.expected_strength if p.run else 1.0
    told = "measured" if best is not None else "as the recipe expects, not measured" if p.run else "not measured"
    base = p.base.source if p.base is not None and p.base.revision is not None else "path/to/base"
    name = p.name.removesuffix(".safetensors")
    return f"""## How to use

Strength **{strength:g}** ({told}).

- A1111, Forge: put `{p.name}` into `models/Lora` and write `<lora:{name}:{strength:g}>`; the `.json` beside it sets that weight.
- ComfyUI: put it into `models/loras`; Load LoRA with `strength_model` {strength:g}.
- diffusers:

```python
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("{p.repo}", weight_name="{p.name}", adapter_name="it")
pipeline.set_adapters(["it"], [{strength:g}])
```"""


def _training(p: Publication, sha256: str) -> str:
    rows = [f"- rank {p.file.rank}, alpha {p.file.rank * p.file.scale:g}, {' and '.join(p.file.components)}, {p.file.kind}"]
    rows += [f"- `{p.name}`, sha256 `{sha256}`"] if sha256 else []
    rows += [f"- from `{_code(p.origin)}`"] if p.origin else []
    rows += [f"- base `{_code(p.base.source)}` at commit `{p.base.revision}`"] if p.base is not None and p.base.revision else []
    rows += [f"- {p.images} pictures{', which lie in `dataset/`' if p.dataset else ''}"] if p.images else []
    if p.run:
        made = p.run.settings
        rows += [f"- recipe {cell(p.run.recipe)} on {cell(p.run.model)}: {made.steps} steps of {made.pictures_a_step} pictures at {made.resolution} pixels"]
        rows += [f"- {made.optimizer}, rate {made.rate:g}, {made.scheduler}, {made.targets}"]
    if p.tags:
        rows.append("- tags of the captions: " + ", ".join(f"{cell(tag)} ({count})" for tag, count in list(p.tags.items())[:MOST_TAGS]))
    return "\n".join(["## How it was made", "", *rows])


def _licence(p: Publication) -> str:
    notice = cell(p.base.notice) if p.base is not None and p.base.notice else ""
    base = f" It goes with its base, {cell(p.base.title)}: {notice}" if notice and p.base else ""
    return f"## Licence\n\n{cell(p.licence)}.{base}"


def _code(text: str) -> str:
    """Inside of backticks nothing is escaped: one line, no backtick."""
    return " ".join(text.replace("`", "'").split())
