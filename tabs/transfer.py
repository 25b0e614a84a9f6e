"""The Transfer tab: LoRAs over base models, a table that fills, and for each pair whether it works there."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from core import edit, limits, lora, presets, shelf
from core.events import Fetch, Opening, Step
from core.features import VAE
from core.markdown import plain, warned
from core.plan import eyes
from core.transfer.outcome import heat, outcome, sheet
from core.transfer.plan import OWN_SWEEP, SEEDS, STRENGTHS, apart, of_run, plan
from core.transfer.study import Study
from core.types import UserError
from tabs import brought, caller, train
from tabs.across import across
from tabs.files import new_folder
from tabs.finished import finished, known
from tabs.widgets import WRITES, Measured, refusals, sentences

ASKED = ("files", "shelf", "runs", "home", "models", "strengths", "seeds", "prompts", "clip_skip", "references", "eye", "blocks")
SHOWN = ("status", "answer", "heat", "matrix", "sheet", "out", "result", "chosen")
DEPTHS = {"0.65 and 1": STRENGTHS, "each pair's own sweep": OWN_SWEEP}
BY_FILE = "as the files say"
DRAWN, SAID = 3.0, 0.7  # seconds between two drawings of a table that fills, and two words: each costs the model a share of a step


def tab(trained: train.Trained, here: gr.Tab) -> Measured:
    """Lay out the tab and wire it: `here`; `trained` is what the Train tab has: a dataset, a recipe, this browser's runs."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            c = _controls()
        with gr.Column(scale=7, min_width=320):
            c |= _results()
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    brought.wire(c, brought.into_choice, c["models"])
    c["depth"].input(lambda name: DEPTHS[name], c["depth"], c["strengths"], **quiet)
    trained.mine.change(known, [trained.mine, c["runs"]], c["runs"], **quiet)
    here.select(finished, trained.mine, c["runs"], **quiet)
    job: dict[str, Any] = {
        "fn": _study,
        "inputs_kwargs": {name: c[name] for name in ASKED},
        "outputs": [c[name] for name in SHOWN],
        "validator": refusals(ASKED, lambda values: plan(_said(values)), {"loras": "files", "lora": "files"}),
        "show_progress": "hidden",
        "concurrency_id": "gpu",
        "concurrency_limit": 1,
        "trigger_mode": "multiple",  # as in tabs/sweep.py
        "api_visibility": "private",
    }
    trained_there = c["across"].click(
        across,
        inputs_kwargs={**trained.asked, "mine": trained.mine, "bases": c["bases"], "kept": c["kept"]},
        outputs=[c["status"], trained.mine, c["runs"], c["models"]],
        show_progress="hidden",
        concurrency_id="across",
        api_visibility="private",
    )
    running = [c["run"].click(**job), trained_there, trained_there.success(fn=None, inputs=trained.mine, js=train.REMEMBER, **quiet).success(**job)]
    stopped = {"fn": lambda: "Stopped. What was finished stays: press Transfer to go on.", "inputs": None, "outputs": c["status"]}
    c["stop"].click(**stopped, cancels=running, **quiet).then(**stopped, **quiet)
    c["matrix"].select(_opened, c["result"], c["chosen"], **quiet)
    c["join"].click(_joined, [c["style"], c["content"]], [c["combined"], c["said"]], **WRITES)
    return Measured(c["publish"], c["result"])


def _controls() -> dict[str, Any]:
    """The left side: components by name."""
    c: dict[str, Any] = {}
    names, nano = [(model.title, model.name) for model in presets.models().values()], ["nano", "nano-cel", "nano-paint", "nano-merge"]
    c["files"] = gr.File(label="LoRAs", file_count="multiple", file_types=[".safetensors"], height=110, elem_id="transfer-files")
    with gr.Row():
        c["shelf"] = gr.Dropdown(
            shelf.names(), value=[], multiselect=True, allow_custom_value=True, label="Shelf, or Hub", info="a name, or owner/name", elem_id="transfer-shelf"
        )
        c["runs"] = gr.Dropdown([], value=[], multiselect=True, label="Your runs", info="of this browser, or of your account", elem_id="transfer-runs")
    c["home"] = gr.Dropdown([BY_FILE, *(name for _, name in names)], value=BY_FILE, label="Trained on", info="their home, against which all is held")
    c["models"] = gr.CheckboxGroup(names, value=nano, label="Base models", elem_id="transfer-models")
    c |= brought.base_box("transfer-hub")
    c["depth"] = gr.Radio(list(DEPTHS), value="0.65 and 1", label="Depth", elem_id="depth")
    with gr.Row():
        c["strengths"] = gr.Textbox(STRENGTHS, label="Strengths", min_width=140, elem_id="transfer-strengths")
        c["seeds"] = gr.Textbox(SEEDS, label="Seeds", info="at least two", min_width=100, elem_id="transfer-seeds")
    c["prompts"] = gr.Textbox(
        "", label="Prompts", info="one a line; empty for the first three of the preset", lines=3, max_lines=16, elem_id="transfer-prompts"
    )
    c["blocks"] = gr.Checkbox(False, label="Take each LoRA apart: a row for each of its blocks")
    with gr.Accordion("How it is measured", open=False):
        c["clip_skip"] = gr.Radio([2, 1], value=2, label="Clip skip", info="2 is how SDXL was made; 1 reads the text encoders' last layer")
        kinds = [".png", ".jpg", ".jpeg", ".webp"]
        c["references"] = gr.File(label=f"Pictures of the trained style, up to {limits.REFERENCES}", file_count="multiple", file_types=kinds, height=110)
        gr.Markdown("A run brings its own. Without any, a LoRA is held against its look at home.")
        c["eye"] = gr.Dropdown(eyes(), value=VAE, label="Seen by", info="the models' own VAE needs no download")
    with gr.Accordion("Train the Train tab's pictures on several bases, then cross them", open=False):
        c["bases"] = gr.CheckboxGroup(names, value=["nano", "nano-cel"], label="Train on", elem_id="across-models")
        c["kept"] = gr.Checkbox(False, label="Also the steps that are kept on the way, not only the last")
        c["across"] = gr.Button("Train, then cross", elem_id="across")
    with gr.Accordion("One file from a style block and a content block", open=False):
        gr.Markdown(f"B-LoRA's way: the style of one LoRA ({', '.join(edit.STYLE)}) with the content of another ({', '.join(edit.CONTENT)}).")
        with gr.Row():
            c["style"] = gr.File(label="Style from", file_types=[".safetensors"], height=110, elem_id="style-from")
            c["content"] = gr.File(label="Content from", file_types=[".safetensors"], height=110, elem_id="content-from")
        c["join"] = gr.Button("Combine", size="sm", elem_id="combine")
        c["combined"] = gr.File(label="The new file", interactive=False, visible=False, elem_id="combined")
        c["said"] = gr.Markdown()
    return c


def _results() -> dict[str, Any]:
    """The right side: components by name."""
    c: dict[str, Any] = {}
    with gr.Row():
        c["run"] = gr.Button("Transfer", variant="primary", scale=3, elem_id="transfer")
        c["stop"] = gr.Button("Stop", variant="stop", elem_id="transfer-stop")
    c["status"] = gr.Markdown("Ready.", elem_id="transfer-status")
    c["answer"] = gr.Markdown(elem_id="transfer-answer")
    c["heat"] = gr.Image(label="Heat map", show_label=False, interactive=False, visible=False, format="png", elem_id="heat")
    c["matrix"] = gr.Dataframe(
        label="Verdict, strength over that at home, share of the style at home, sweet spot; choose a cell to see its pictures",
        show_label=True,
        interactive=False,
        visible=False,
        wrap=True,
        type="array",
        elem_id="matrix",
    )
    c["chosen"] = gr.Gallery(
        label="Pictures of the chosen pair",
        columns=6,
        height=360,
        visible=False,
        object_fit="contain",
        format="png",
        buttons=["download", "fullscreen"],
        elem_id="pair",
    )
    c["sheet"] = gr.Image(label="Grid", show_label=False, interactive=False, visible=False, format="png", elem_id="transfer-sheet")
    c["out"] = gr.File(label="Everything: pictures, page, table, report", file_count="multiple", interactive=False, visible=False, elem_id="transfer-out")
    c["publish"] = gr.Button("Take it into Publish", size="sm", elem_id="transfer-publish")
    c["result"] = gr.State(None)
    return c


# --- what is asked ---------------------------------------------------------------------------------


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """The tab's values as `core.transfer.plan` takes them."""
    told = {} if values["home"] in (None, BY_FILE) else {"home": values["home"]}
    tables: list[dict[str, Any]] = [{"lora": str(file), **told} for file in values["files"] or []]
    tables += [{"lora": str(shelf.found(str(name))), **told} for name in values["shelf"] or []]
    for name in values["runs"] or []:
        run, _, kept = name.partition(":")
        made = of_run(caller.found(run))
        tables += made if kept else made[-1:]
    if values["blocks"]:
        tables = [row for table in tables for row in apart(table)]
    prompts = (values["prompts"] or "").strip() or None
    return {**{name: values[name] for name in ("models", "strengths", "seeds", "clip_skip", "references", "eye")}, "prompts": prompts, "loras": tables}


# --- the study -------------------------------------------------------------------------------------


def _study(**values: Any) -> Iterator[tuple[Any, ...]]:
    """Run the study for the page: what `SHOWN` shows after each event."""
    skip, folder, hidden = gr.skip(), new_folder(), gr.update(visible=False)
    study = Study(plan(_said(values)))
    yield "Waiting for the model …", *[skip] * (len(SHOWN) - 1)  # a study from before stays until there is something of this one
    drawn, pairs, told = time.monotonic(), 0, 0.0
    with sentences():
        for event in study.run():
            done, total = study.done()
            if isinstance(event, Fetch | Opening):
                yield brought.arrived(event), *[skip] * (len(SHOWN) - 1)
            if isinstance(event, Step) and time.monotonic() - told > SAID:
                told = time.monotonic()
                yield f"Picture {done + 1} of {total} · {event.stage} step {event.step} of {event.steps}", *[skip] * (len(SHOWN) - 1)
            if time.monotonic() - drawn > DRAWN and (made := sum(pair.is_whole for pair in study.pairs.values())) > pairs:
                drawn, pairs = time.monotonic(), made
                yield f"{done} of {total} pictures", "", hidden, hidden, gr.update(value=sheet(study), visible=True), hidden, None, hidden
        result = outcome(study, folder)
    report = result.report
    done, total = study.done()
    yield (
        f"{done} of {total} pictures in {study.seconds:.1f} s; models loaded: {len(study.loads)}.",
        _answer(report),
        gr.update(value=heat(study, report), visible=True),
        _matrix(report),
        gr.update(value=str(result.sheet), visible=True),
        gr.update(value=[str(file) for file in (result.archive, result.page, result.table)], visible=True),
        {"report": report, "folder": str(folder)},
        hidden,
    )


def _answer(report: dict[str, Any]) -> str:
    """Where each works, what is said of the claims, what could not be made, and the rule."""
    lines = [f"### {plain(report['why'])}", *(f"- {plain(claim['why'])}" for claim in report["lineage"]["claims"] if claim["difference"] is not None)]
    lines += [f"- {plain(line)}" for line in report["blocks"]]
    failed = {f"- {warned('{lora} on {model}: {why}'.format_map(pair))}" for pair in report["per_pair"] if pair["verdict"] is None}
    lines += [*sorted(failed), *(f"- {plain(why)}" for why in report["unmeasured"].values()), "", f"*{report['rule']}*"]
    lines += ["", "```", *report["lineage"]["tree"], "```"]
    return "\n".join(lines)


def _matrix(report: dict[str, Any]) -> Any:
    by = {(pair["lora"], pair["model"]): pair for pair in report["per_pair"]}
    rows = [[name, *(_cell(by[name, model]) for model in report["models"])] for name in report["loras"]]
    return gr.update(value={"headers": ["LoRA", *report["models"]], "data": rows}, visible=True)


def _cell(pair: dict[str, Any]) -> str:
    words = [pair["verdict"] or "?"]
    words += [f"x{pair['needs_times']:.2g}"] if pair["needs_times"] else []
    words += [f"{100 * pair['share']:.0f} %"] if pair["share"] is not None else []
    works = pair["sweet_spot"] and pair["verdict"] != "none"  # where something changes and nothing is lost, but not its style, is no place to use it
    words += [f"{pair['sweet_spot'][0]:g} to {pair['sweet_spot'][1]:g}"] if works else []
    return ("⌂ " if pair["relation"] == "home" else "") + " · ".join(words)


def _opened(result: dict[str, Any] | None, event: gr.SelectData) -> Any:
    """The pictures of the chosen pair at full size, rising in strength; in the first column those without a LoRA."""
    if result is None:
        return gr.skip()
    report, (row, column) = result["report"], event.index
    lora, model = report["loras"][row], report["models"][max(0, column - 1)]
    chosen = [told for told in report["pictures"] if told["lora"] in (lora, None) and told["model"] == model]
    chosen.sort(key=lambda told: (told["strength"], report["prompts"].index(told["prompt"]), told["seed"]))
    shown = [(str(Path(result["folder"]) / told["picture"]), f"{told['strength']:g} · {told['seed']}") for told in chosen]
    return gr.update(value=shown, visible=True, label=f"{lora} on {model}: strength · seed")


# --- recombining --------------------------------------------------------------


def _joined(style: str | None, content: str | None) -> tuple[Any, str]:
    """The style block of one LoRA and the content block of another in one file."""
    try:
        if not style or not content:
            raise UserError("style: choose both files.")
        return gr.update(value=str(edit.combined(lora.file(style), lora.file(content), new_folder())), visible=True), "Written."
    except UserError as error:
        return gr.skip(), warned(str(error))
