"""What the Transfer tab says while a study runs."""

from core.generate.features import VAE
from tabs.transfer import tab as transfer_tab
from tests.transfer.conftest import EXAMPLE, PROMPTS


def test_a_study_from_before_stays_until_there_is_something_of_the_next() -> None:
    asked = dict.fromkeys(transfer_tab.INPUT_NAMES) | {
        "files": [str(EXAMPLE)],
        "home": "nano",
        "models": ["nano"],
        "strengths": "1",
        "seeds": "1, 2",
    }
    job = transfer_tab._run_study(**asked | {"prompts": PROMPTS, "clip_skip": 2, "eye": VAE})
    first = next(job)
    job.close()
    assert first == {"status": "Loading the model …"}
