"""A hostile client of the app: plain HTTP, any JSON, none of gradio_client's checks.

And the files that its calls leave behind.
"""

import json
from pathlib import Path
from typing import Any

import httpx
from gradio_client import Client

from core.sweep import cell_cache
from core.train import runs
from tabs.server.page_files import FILES_FOLDER

ENDPOINTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "api_snapshot.json").read_text()
)
"""The named endpoints with their parameters; tests/tabs/test_api.py fails if one is missing."""
TEXT_FIELDS = {"prompt", "prompts", "negative", "trigger", "title", "description", "drop", "ban", "license"}
"""Fields of free text, which name nothing. Any other field, also a new one, is tried."""
CHEAP_VALUES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "1girl", "steps": 1, "width": 64, "height": 64},
    "/expand_prompt": {"prompt": "1girl", "max_tags": 1},
    "/inspect_lora": {"lora": "nano-airbrush"},
    "/edit_lora": {"lora": "nano-airbrush", "multiply": 2},
    "/sweep": {"lora": "nano-airbrush", "strengths": "0, 1", "seeds": "1", "prompts": "1girl"},
    "/sweep_axes": {"axis": "steps", "values": "1, 2", "seeds": "1", "prompts": "1girl"},
    "/compare_loras": {"lora": "nano-airbrush", "lora2": "nano-airbrush", "seeds": "1", "prompts": "1girl"},
    "/transfer": {
        "loras": ["nano-airbrush"],
        "models": ["nano"],
        "strengths": "0, 1",
        "seeds": "1",
        "prompts": "1girl",
    },
    "/publish": {"lora": "nano-airbrush", "repo": "ann/soft", "license": "mit", "dry_run": True},
}
"""Values for the fields that a test is not about: allowed, and next to no work."""


class RawClient:
    """A client that sends plain HTTP requests to the app."""

    def __init__(self, studio: str) -> None:
        # plain HTTP needs no certificates, so none are read
        self.http = httpx.Client(base_url=f"{studio}gradio_api/", timeout=60, trust_env=False, verify=False)

    def post(self, path: str, body: Any) -> httpx.Response:
        """Post JSON as Python writes it, so that NaN, Infinity and lone surrogates go through."""
        return self.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    def submit(self, endpoint: str, **values: Any) -> httpx.Response:
        """Return the endpoint's answer before the queue: the place in it, or why there is none."""
        takes = {
            name: None if value == "required" else value
            for name, value in ENDPOINTS[endpoint]["takes"].items()
        }
        assert values.keys() <= takes.keys()
        return self.post(
            f"call{endpoint}", {"data": list({**takes, **CHEAP_VALUES.get(endpoint, {}), **values}.values())}
        )

    def call_endpoint(self, endpoint: str, **values: Any) -> str:
        """Return "refused: " and the validator's or the job's sentence, else the whole answer."""
        first = self.submit(endpoint, **values)
        if first.status_code == 422:
            return "refused: " + " ".join(
                told["message"] for told in first.json()["detail"] if not told["is_valid"]
            )
        if not first.is_success:
            return f"refused: {first.text}"
        text = self.http.get(f"call{endpoint}/{first.json()['event_id']}").text
        failed, _, told = text.rpartition("event: error\ndata: ")
        return f"refused: {json.loads(told)['error']}" if failed or text.startswith("event: error") else text

    def press_generate(self, client: Client, label: str, value: Any) -> httpx.Response:
        """Send what the page's Generate button sends, with `value` in the control of this label."""
        config: Any = client.config
        make = next(each for each in config["dependencies"] if each["api_name"] == "_generate_pictures")
        props = {each["id"]: each["props"] for each in config["components"]}
        labels = [props[number].get("label") for number in make["inputs"]]
        assert label in labels
        data = [
            value if name == label else props[number].get("value")
            for name, number in zip(labels, make["inputs"], strict=True)
        ]
        return self.post("queue/join", {"data": data, "fn_index": make["id"], "session_hash": "hostile"})

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """Upload a file and return the value that the page's own client would send for it."""
        (path,) = self.http.post("upload", files={"files": (name, data)}).raise_for_status().json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def count_waiting(self) -> int:
        """Return the number of requests in the queue."""
        return self.http.get("queue/status").json()["queue_size"]


def find_naming_fields(client: Client, endpoint: str) -> dict[str, str]:
    """Return the fields in which a client could name a file or an address, with their components.

    These are all but numbers, switches and free text.
    """
    api: Any = client.view_api(return_format="dict", print_info=False)
    kinds = {
        each["parameter_name"]: each["component"] for each in api["named_endpoints"][endpoint]["parameters"]
    }
    return {
        field: kinds[field]
        for field in ENDPOINTS[endpoint]["takes"]
        if field not in TEXT_FIELDS and kinds[field] not in ("Number", "Checkbox")
    }


def list_leftovers() -> set[Path]:
    """Return every file and folder where the app writes.

    Left out are the empty files that Gradio's own `File` leaves beside an upload when it is read.
    """
    there = {path for root in (FILES_FOLDER, cell_cache.FOLDER, runs.RUNS) for path in root.rglob("*")}
    return {
        path
        for path in there
        if not (path.parent == FILES_FOLDER and path.name.startswith("tmp") and path.stat().st_size == 0)
    }
