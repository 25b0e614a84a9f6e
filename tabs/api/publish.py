"""The named endpoint that publishes."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from core.publish.bundle import build_bundle
from core.publish.plan import PublicationForm, plan_publication
from core.publish.push import preview_repo
from core.schema.errors import UserError
from core.schema.records import read_form, record
from tabs.api.inputs import build_input
from tabs.server import visitor as caller
from tabs.server.page_files import create_temporary_folder, resolve_lora, resolve_uploads
from tabs.shared.checks import get_login_token, make_plan_validator, translate_errors
from tabs.shared.forms import takes
from tabs.shared.publish_job import PUBLISH_OPTIONS, send_publication


@record
class PublishForm:
    """The request of `/publish`; a field that is `None` takes what the file or the run says."""

    lora: Any = None
    """An uploaded file, a name in the LoRA library, or a Hub id."""
    run: Any = None
    """A run's name."""
    repo: str = ""
    title: Any = None
    license: Any = None
    private: Any = True
    sweep: Any = None
    """The report, or several reports, of sweeps of this very file."""
    dry_run: bool = False
    trigger: Any = None
    description: Any = None
    transfer: Any = None
    """The report of a transfer study of this very file."""
    pictures: Any = None
    """Uploaded images that were made here."""
    use_login: bool = False
    dataset: Any = False

    def to_publication(self) -> PublicationForm:
        """Return the form of the publication, with paths for the files.

        Raises `UserError` if a value is not valid, or a file or run cannot be found.
        """
        shared = (
            "repo",
            "title",
            "license",
            "private",
            "sweep",
            "trigger",
            "description",
            "transfer",
            "dataset",
        )
        values = {name: getattr(self, name) for name in shared}
        values["pictures"] = () if self.pictures is None else resolve_uploads(self.pictures, "pictures")
        if self.run is not None:
            values["run"] = str(caller.find_run(self.run).path)
        if self.lora is not None:
            values["lora"] = resolve_lora(self.lora)
        return read_form(PublicationForm, values)


@takes(PublishForm)
def publish(visitor_token: gr.OAuthToken | None, form: PublishForm) -> Iterator[dict[str, Any]]:
    """Publish a LoRA, or that of a run, to the Hub in one commit.

    `sweep` and `transfer` are reports of this very file. `dataset` includes a run's training
    images.

    With `dry_run` nothing is uploaded; it returns the files with what they change, the card as it would
    be, its change as a unified diff, and why nothing could be compared where the Hub does not answer.
    Returns url, commit, files.
    """
    with translate_errors():
        publication = plan_publication(form.to_publication())
        own = get_login_token(form.use_login, visitor_token)
        if own is None and not form.dry_run:
            raise UserError(
                "login", "nobody is logged in; at home run `hf auth login` and set use_login to true."
            )
        with create_temporary_folder() as folder:
            files = build_bundle(publication, folder)
            there = preview_repo(publication, files, own or False)
            listed = [
                {"file": change.path, "size": change.size, "what": change.status} for change in there.changes
            ]
            if form.dry_run:
                yield {
                    "url": None,
                    "commit": there.commit,
                    "files": listed,
                    "card": there.files["README.md"].read_bytes().decode(),
                    "card_change": there.card_change,
                    "unknown": there.unknown,
                }
                return
            assert own is not None
            url = yield from send_publication(publication, files, own)
    yield {"url": url, "commit": url.rpartition("/")[2], "files": listed}


def register_endpoints() -> None:
    """Wire the endpoint, on components that no page shows."""
    asked = {
        name: build_input(gr.Textbox)
        for name in ("run", "repo", "title", "license", "trigger", "description")
    }
    asked |= {name: build_input(gr.JSON) for name in ("lora", "sweep", "transfer", "pictures")}
    asked |= {
        name: build_input(gr.Checkbox, name == "private")
        for name in ("private", "dry_run", "use_login", "dataset")
    }
    gr.Button(visible=False).click(
        publish,
        inputs_kwargs=asked,
        outputs=gr.JSON(visible=False),
        validator=make_plan_validator(
            tuple(asked),
            lambda values: plan_publication(read_form(PublishForm, values).to_publication()),
            {"home": "lora"},
        ),
        **PUBLISH_OPTIONS,
        api_name="publish",
    )
