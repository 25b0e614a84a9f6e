"""The named endpoint that publishes, and how a publication is sent there and from the tab."""

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from core.aside import aside
from core.publish.bundle import bundle
from core.publish.plan import Publication, plan
from core.publish.push import compared, pushed
from core.types import UserError
from tabs import caller
from tabs.files import chosen, passing_folder, uploaded
from tabs.widgets import refusals, sentences, token

TOLD = ("repo", "title", "trigger", "description", "license", "private", "dataset")
AT_ONCE: dict[str, Any] = {"concurrency_id": "publish", "concurrency_limit": 4}
"""Publications: nobody waits behind another's slow upload."""


def sent(publication: Publication, files: Mapping[str, Path], own: str, over: bool = False) -> Generator[Any, None, str]:
    """Send it, and return the commit's address; closed before the commit has begun, there will be none."""
    stop = Event()
    looks = aside(partial(pushed, private=publication.private, over=over, stop=stop), publication.repo, files, own, f"Publish {publication.name}")
    try:
        while True:
            next(looks)
            yield gr.skip()
    except StopIteration as done:
        return done.value
    finally:
        stop.set()


def publish(
    visitor: gr.OAuthToken | None,
    lora: str | dict | None = None,
    run: str | None = None,
    repo: str = "",
    title: str | None = None,
    license: str | None = None,
    private: bool = True,
    sweep: dict | list | None = None,
    dry_run: bool = False,
    trigger: str | None = None,
    description: str | None = None,
    transfer: dict | None = None,
    pictures: list | None = None,
    use_login: bool = False,
    dataset: bool = False,
) -> Iterator[dict[str, Any]]:
    """Publish a LoRA, or a run's, to the Hub in one commit. `sweep` and `transfer` are reports of this very file.

    `dataset` sends a run's training pictures, too.

    With `dry_run` nothing is sent, and the card's text and the files with what they change come back. Returns url, commit, files.
    """
    told = {"repo": repo, "title": title, "license": license, "private": private, "sweep": sweep, "trigger": trigger, "description": description}
    told["dataset"] = dataset
    with sentences():
        publication = plan(_asked(lora=lora, run=run, pictures=pictures, **told, transfer=transfer))
        own = token(use_login, visitor)
        with passing_folder() as folder:
            files = bundle(publication, folder)
            there = compared(publication.repo, files, own or False)
            listed = [{"file": change.path, "size": change.size, "what": change.what} for change in there.changes]
            if dry_run:
                yield {"url": None, "commit": there.commit, "files": listed, "card": files["README.md"].read_text(encoding="utf-8")}
                return
            if own is None:
                raise UserError("login: nobody is logged in; at home set use_login to true, after `hf auth login`.")
            url = yield from sent(publication, files, own)
    yield {"url": url, "commit": url.rpartition("/")[2], "files": listed}


def _asked(lora: Any, run: str | None, pictures: list | None = None, **told: Any) -> dict[str, Any]:
    """What `/publish` takes as `core.publish.plan` takes it."""
    if not isinstance(pictures, list | None):
        raise UserError("pictures: it takes a list of uploaded pictures.")
    said = {name: told.get(name) for name in (*TOLD, "sweep", "transfer")} | {"pictures": [uploaded(each, "pictures") for each in pictures or []]}
    return said | ({"run": str(caller.found(run).path)} if run else {"lora": chosen(lora) if lora else None})


def endpoints() -> None:
    """Wire the endpoint, on components that no page shows."""

    def hidden(kind: Any, value: Any = None) -> Any:
        return kind(value, visible=False)

    asked = {name: hidden(gr.Textbox) for name in ("run", "repo", "title", "license", "trigger", "description")}
    asked |= {name: hidden(gr.JSON) for name in ("lora", "sweep", "transfer", "pictures")}
    asked |= {name: hidden(gr.Checkbox, name == "private") for name in ("private", "dry_run", "use_login", "dataset")}
    gr.Button(visible=False).click(
        publish,
        inputs_kwargs=asked,
        outputs=gr.JSON(visible=False),
        validator=refusals(tuple(asked), lambda values: plan(_asked(**values)), {"home": "lora"}),
        **AT_ONCE,
        api_name="publish",
    )
