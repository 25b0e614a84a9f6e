"""Send a publication, from the tab and from the endpoint, and stop it."""

from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from core.publish.plan import Publication
from core.publish.push import push_files
from core.system.concurrency import run_in_background

PUBLISH_OPTIONS: dict[str, Any] = {"concurrency_id": "publish", "concurrency_limit": 4}
"""Options of events that publish: nobody waits behind another's slow upload."""


def send_publication(
    publication: Publication, files: Mapping[str, Path], user_token: str, overwrite: bool = False
) -> Generator[Any, None, str]:
    """Send the publication, and return the commit's address.

    If the generator is closed before the commit has begun, there will be none.
    """
    stop = Event()
    looks = run_in_background(
        partial(push_files, overwrite=overwrite, stop=stop), publication, files, user_token
    )
    try:
        while True:
            next(looks)
            yield gr.skip()
    except StopIteration as done:
        return done.value
    finally:
        stop.set()
