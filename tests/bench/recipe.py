"""What the parts of the BAXL recipe do on nano: `python tests/bench/recipe.py` prints the README's table.

1. The face detector: recall at IoU 0.5 on the girls of 540 held-out drawings and on generated pictures, and boxes on the 100 or so
   without a face. Where the face of a generated picture is, nobody has drawn; there, a picture whose tagger reads
   `1girl` counts as found when exactly one box lies over it.
2. DATx2: PSNR over Lanczos on 100 held-out drawings at twice the size.
3. DanTagGen: of 200 prompts, the share whose given tags stay, whose added tags are all of the world, and that
   hold no two tags that exclude each other.
4. Seconds of the whole recipe from one call; how much sharper small faces are with details, and pixels changed elsewhere.
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core import asking, tools  # noqa: E402
from core.caption import Tagger  # noqa: E402
from core.details import places  # noqa: E402
from core.detect import Detector  # noqa: E402
from core.events import Picture  # noqa: E402
from core.expand import expand, said_tags  # noqa: E402
from core.generate import generate  # noqa: E402
from core.hires import enlarged  # noqa: E402
from core.masks import bounds, overlap  # noqa: E402
from core.nano.draw import drawing  # noqa: E402
from core.nano.pictures import HELD_OUT, scene  # noqa: E402
from core.nano.world import GROUPS, SIZES, TAGS, tags  # noqa: E402
from core.presets import recipes  # noqa: E402
from core.types import Hires  # noqa: E402
from tests.bench.nano import pictures, prompts  # noqa: E402

CONFIDENCE = 0.3


def faces(detector: Detector) -> dict[str, float]:
    """Recall on drawings and generated pictures, boxes where there is no face."""
    found = there = false = empty = 0
    for i in range(540):
        drawn = drawing(scene(HELD_OUT + i, SIZES[i % 3]))
        boxes = [f.box for f in detector.find(drawn.picture, CONFIDENCE)]
        if drawn.face is None:
            empty, false = empty + 1, false + len(boxes)
            continue
        edges = [round(edge) for edge in drawn.face]
        inside = (max(0, edges[0]), max(0, edges[1]), min(drawn.picture.width, edges[2]), min(drawn.picture.height, edges[3]))
        there, found = there + 1, found + any(overlap(box, inside) >= 0.5 for box in boxes)
    asked = prompts(60)
    made, tagger = pictures(asked, seed=9000), Tagger()
    girls = [p for p, read in ((p, tagger.read([p])[0]) for p in made) if read["1girl"] >= 0.5]
    one = sum(len(detector.find(p, CONFIDENCE)) == 1 for p in girls)
    return {"drawings": found / there, "generated": one / len(girls), "boxes_without_a_face": false, "pictures_without_a_face": empty}


def psnr(ours: Image.Image, truth: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.square(np.asarray(ours, float) - np.asarray(truth, float)).mean()))


def upscaler() -> dict[str, float]:
    """Mean PSNR of both on the same drawings."""
    ours, lanczos = [], []
    for i in range(100):
        large = drawing(scene(HELD_OUT + i, SIZES[i % 3]), scale=2).picture
        small = large.reduce(2)
        ours.append(psnr(enlarged(small, Hires(upscaler="nano DAT x2"), large.size), large))
        lanczos.append(psnr(small.resize(large.size, Image.Resampling.LANCZOS), large))
    return {"dat": statistics.mean(ours), "lanczos": statistics.mean(lanczos), "gain": statistics.mean(ours) - statistics.mean(lanczos)}


def expander(count: int = 200) -> dict[str, float]:
    """Shares of prompts that keep their tags, stay in the world, contradict nothing."""
    how = recipes()["nano"].expand
    kept = known = clean = many = 0
    for i in range(count):
        rng = np.random.default_rng([11, i])
        first, *rest = tags(scene(HELD_OUT * 3 + i, SIZES[i % 3]))
        given = [first, *(rest[k] for k in sorted(rng.permutation(len(rest))[: int(rng.integers(0, 4))]))]
        width, height = SIZES[i % 3]
        found = expand(", ".join(given), how, width=width, height=height, seed=i)
        whole = [*given, *found.added]
        kept += said_tags(found.prompt)[: len(given)] == given
        known += set(found.added) <= set(TAGS)
        clean += all(len(set(group) & set(whole)) <= 1 for group in GROUPS)
        many += len(found.added)
    return {"kept": kept / count, "of_the_world": known / count, "without_contradiction": clean / count, "tags_added": many / count}


def sharpness(picture: Image.Image, box: tuple[int, int, int, int]) -> float:
    """Mean absolute Laplacian inside a box."""
    x = np.asarray(picture.convert("L").crop(box), float)
    return float(np.abs(4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]).mean())


def whole(count: int = 6) -> dict[str, object]:
    """Seconds of the whole recipe by one call."""
    seconds = []
    for seed in range(count):
        values = {"preset": "nano-baxl", "prompt": "1girl, blue hair, portrait", "seed": seed}
        begin = time.monotonic()
        expanded = asking.expanded(values)
        assert expanded is not None
        list(generate(asking.cells({**values, "prompt": expanded.prompt})))
        seconds.append(time.monotonic() - begin)
    return {"seconds": statistics.median(seconds)}


def detailed(count: int = 12) -> dict[str, object]:
    """Small faces with and without details, everything else the same: sharpness in their boxes, pixels changed outside the masks."""
    ratios, outside = [], 0
    for seed in range(count):
        asked = {"preset": "nano", "prompt": "1girl, blue hair, smile, full body, flat color", "seed": seed, "detail": True}
        (cell,) = asking.cells(asked)
        *_, after = generate([cell])
        *_, before = generate([replace(cell, request=replace(cell.request, detail=None))])
        assert isinstance(after, Picture)
        assert isinstance(before, Picture)
        found = places([before.image], [cell.request], native=128)[0]
        anywhere = np.zeros((before.image.height, before.image.width), bool)
        for place in found:
            anywhere |= place.mask > 0
            box = bounds(place.mask)
            assert box is not None
            ratios.append(sharpness(after.image, box) / sharpness(before.image, box))
        changed = np.abs(np.asarray(after.image, int) - np.asarray(before.image, int)).max(-1) > 0
        outside += int(changed[~anywhere].sum())
    return {
        "sharper": statistics.median(ratios),
        "share_sharper": float(np.mean(np.array(ratios) > 1)),
        "faces": len(ratios),
        "pixels_changed_outside": outside,
    }


def main() -> None:
    report: dict[str, object] = {"date": date.today().isoformat(), "device": "cpu"}
    for name, part in (
        ("faces", lambda: faces(Detector(tools.file("detector", "nano face")))),
        ("upscaler", upscaler),
        ("expander", expander),
        ("recipe", whole),
    ):
        report[name] = part()
        print(name, report[name], flush=True)
    (ROOT / "tests" / "bench" / "results" / "recipe.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
