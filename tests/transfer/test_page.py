"""The Transfer tab's words while a study goes on."""

import gradio as gr

from core.features import VAE
from tabs import transfer
from tests.transfer.conftest import EXAMPLE, PROMPTS


def test_a_study_from_before_stays_until_there_is_something_of_the_next() -> None:
    asked = dict.fromkeys(transfer.ASKED) | {"files": [str(EXAMPLE)], "home": "nano", "models": ["nano"], "strengths": "1", "seeds": "1, 2"}
    job = transfer._study(**asked | {"prompts": PROMPTS, "clip_skip": 2, "eye": VAE})
    status, *rest = next(job)
    job.close()
    assert status == "Waiting for the model …"
    assert rest == [gr.skip()] * (len(transfer.SHOWN) - 1)
