"""The app as a hostile client speaks to it: plain HTTP, any JSON, none of gradio_client's manners; and what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import httpx

from core import cells
from core.train import runs
from tabs.files import FILES

ENDPOINTS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent.parent / "api_snapshot.json").read_text())
"""The named endpoints with what they take; a new one is in it, or tests/test_api.py fails."""
CHEAP: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "1girl", "steps": 1, "width": 64, "height": 64},
    "/expand_prompt": {"prompt": "1girl", "max_tags": 1},
    "/inspect_lora": {"lora": "nano-airbrush"},
    "/edit_lora": {"lora": "nano-airbrush", "multiply": 2},
    "/sweep": {"lora": "nano-airbrush", "strengths": "0", "seeds": "1", "prompts": "1girl"},
    "/transfer": {"loras": ["nano-airbrush"], "models": ["nano"], "strengths": "0", "seeds": "1", "prompts": "1girl"},
    "/publish": {"lora": "nano-airbrush", "repo": "ann/soft", "license": "mit", "dry_run": True},
}
"""What an endpoint is asked beside the one field that a test is about: allowed, and next to no work."""


class Raw:
    """A client."""

    def __init__(self, studio: str) -> None:
        self.http = httpx.Client(base_url=f"{studio}gradio_api/", timeout=60, trust_env=False, verify=False)  # no certificates are read for plain HTTP

    def post(self, path: str, body: Any) -> httpx.Response:
        """JSON as Python writes it: NaN, Infinity and halves of characters go through."""
        return self.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    def asked(self, endpoint: str, **values: Any) -> httpx.Response:
        """The endpoint's answer before the queue: the place in it, or why there is none."""
        takes = {name: None if value == "required" else value for name, value in ENDPOINTS[endpoint]["takes"].items()}
        assert values.keys() <= takes.keys()
        return self.post(f"call{endpoint}", {"data": list({**takes, **CHEAP.get(endpoint, {}), **values}.values())})

    def answer(self, endpoint: str, **values: Any) -> str:
        """The sentence that it is refused with, by the validator or by the job; else all that the endpoint says."""
        first = self.asked(endpoint, **values)
        if first.status_code == 422:
            return "refused: " + " ".join(told["message"] for told in first.json()["detail"] if not told["is_valid"])
        if not first.is_success:
            return f"refused: {first.text}"
        text = self.http.get(f"call{endpoint}/{first.json()['event_id']}").text
        failed, _, told = text.rpartition("event: error\ndata: ")
        return f"refused: {json.loads(told)['error']}" if failed or text.startswith("event: error") else text

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """A file as the page's own client names it after uploading."""
        (path,) = self.http.post("upload", files={"files": (name, data)}).raise_for_status().json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def waiting(self) -> int:
        """Requests in the queue."""
        return self.http.get("queue/status").json()["queue_size"]


def left_behind() -> set[Path]:
    """Every file and folder where the app writes, but the empty file that Gradio's own `File` leaves beside an upload each time it is read."""
    there = {path for root in (FILES, cells.FOLDER, runs.RUNS) for path in root.rglob("*")}
    return {path for path in there if not (path.parent == FILES and path.name.startswith("tmp") and path.stat().st_size == 0)}
