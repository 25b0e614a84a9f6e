"""What lies in the Hub's cache and nobody uses any more goes, but what the studio's own tables name."""

import time
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir

from core import presets
from core.device import on_space


def swept(unused: float) -> int:
    """Remove repositories that nobody has used for so many seconds; how many went. At home it is the person's own cache: nothing goes."""
    if not on_space() or not Path(constants.HF_HUB_CACHE).is_dir():
        return 0
    kept = {each.source for each in (*presets.models().values(), *presets.tools().values())}
    found = scan_cache_dir(constants.HF_HUB_CACHE)
    old = [each for each in found.repos if each.repo_id not in kept and max(each.last_accessed, each.last_modified) < time.time() - unused]
    found.delete_revisions(*(revision.commit_hash for each in old for revision in each.revisions)).execute()
    return len(old)
