"""A training whose second process fails.

Start it by `-m torch.distributed.run ... -m tests.train.broken_rank --resume FOLDER`.
"""

import os

from core.train import __main__
from core.train.trainer import loop


def break_off(*_: object) -> None:
    raise RuntimeError("the second card is gone")


if os.environ["RANK"] == "1":
    loop.Trainer._try_step = break_off
__main__.main()
