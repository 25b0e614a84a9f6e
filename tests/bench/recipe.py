"""Print the README's table of the BAXL recipe on nano: `python tests/bench/recipe.py`.

1. The face detector: recall at IoU 0.5 on the girls of 540 held-out drawings and on generated
   pictures, and boxes on the 100 or so without a face. Nobody has drawn where the face of a
   generated picture is; there, a picture whose tagger reads `1girl` counts as found when exactly
   one box lies over it.
2. DATx2: PSNR over Lanczos on 100 held-out drawings at twice the size.
3. DanTagGen: of 200 prompts, the share whose given tags stay, whose added tags are all of the
   world, and that hold no two tags that exclude each other.
4. Seconds of the whole recipe from one call; how much sharper small faces are with details, and
   pixels changed elsewhere.
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

from core.generate import request  # noqa: E402
from core.generate.pipeline import generate  # noqa: E402
from core.generate.stages.details import find_detail_regions  # noqa: E402
from core.generate.stages.detector import Detector  # noqa: E402
from core.generate.stages.hires import enlarge_picture  # noqa: E402
from core.generate.stages.masks import mask_bounds, overlap  # noqa: E402
from core.generate.tag_expander import expand, extract_prompt_tags  # noqa: E402
from core.models import tools  # noqa: E402
from core.models.tagger import Tagger  # noqa: E402
from core.nano.draw import draw_with_face  # noqa: E402
from core.nano.pictures import FIRST_HELD_OUT, make_scene  # noqa: E402
from core.nano.world import GROUPS, SIZES, TAGS, list_tags  # noqa: E402
from core.schema.events import Picture  # noqa: E402
from core.schema.presets import get_prompt_presets  # noqa: E402
from core.schema.records import read_form  # noqa: E402
from core.schema.types import Hires  # noqa: E402
from tests.bench.nano import draw_prompts, generate_pictures  # noqa: E402

CONFIDENCE = 0.3


def score_detector(detector: Detector) -> dict[str, float]:
    """Return the recall on drawings and generated pictures, and the boxes without a face."""
    found = there = false = empty = 0
    for i in range(540):
        drawn = draw_with_face(make_scene(FIRST_HELD_OUT + i, SIZES[i % 3]))
        boxes = [f.box for f in detector.find(drawn.picture, CONFIDENCE)]
        if drawn.face is None:
            empty, false = empty + 1, false + len(boxes)
            continue
        edges = [round(edge) for edge in drawn.face]
        inside = (
            max(0, edges[0]),
            max(0, edges[1]),
            min(drawn.picture.width, edges[2]),
            min(drawn.picture.height, edges[3]),
        )
        there, found = there + 1, found + any(overlap(box, inside) >= 0.5 for box in boxes)
    asked, _ = draw_prompts(60)
    made, tagger = generate_pictures(asked, seed=9000), Tagger()
    girls = [p for p, read in ((p, tagger.read_tags([p])[0]) for p in made) if read["1girl"] >= 0.5]
    one = sum(len(detector.find(p, CONFIDENCE)) == 1 for p in girls)
    return {
        "drawings": found / there,
        "generated": one / len(girls),
        "boxes_without_a_face": false,
        "pictures_without_a_face": empty,
    }


def psnr(ours: Image.Image, truth: Image.Image) -> float:
    """Return the peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.square(np.asarray(ours, float) - np.asarray(truth, float)).mean()))


def score_upscaler() -> dict[str, float]:
    """Return the mean PSNR of DATx2 and of Lanczos on the same drawings."""
    ours, lanczos = [], []
    for i in range(100):
        large = draw_with_face(make_scene(FIRST_HELD_OUT + i, SIZES[i % 3]), scale=2).picture
        small = large.reduce(2)
        ours.append(psnr(enlarge_picture(small, Hires(upscaler="nano DAT x2"), large.size), large))
        lanczos.append(psnr(small.resize(large.size, Image.Resampling.LANCZOS), large))
    return {
        "dat": statistics.mean(ours),
        "lanczos": statistics.mean(lanczos),
        "gain": statistics.mean(ours) - statistics.mean(lanczos),
    }


def score_expander(count: int = 200) -> dict[str, float]:
    """Return the shares of prompts that keep their tags, stay in the world, contradict nothing."""
    how = get_prompt_presets()["nano"].expand
    kept = known = clean = many = 0
    for i in range(count):
        rng = np.random.default_rng([11, i])
        first, *rest = list_tags(make_scene(FIRST_HELD_OUT * 3 + i, SIZES[i % 3]))
        given = [first, *(rest[k] for k in sorted(rng.permutation(len(rest))[: int(rng.integers(0, 4))]))]
        width, height = SIZES[i % 3]
        found = expand(", ".join(given), how, width=width, height=height, seed=i)
        whole = [*given, *found.added]
        kept += extract_prompt_tags(found.prompt)[: len(given)] == given
        known += set(found.added) <= set(TAGS)
        clean += all(len(set(group) & set(whole)) <= 1 for group in GROUPS)
        many += len(found.added)
    return {
        "kept": kept / count,
        "of_the_world": known / count,
        "without_contradiction": clean / count,
        "tags_added": many / count,
    }


def sharpness(picture: Image.Image, box: tuple[int, int, int, int]) -> float:
    """Return the mean absolute Laplacian inside a box."""
    x = np.asarray(picture.convert("L").crop(box), float)
    return float(np.abs(4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]).mean())


def time_recipe(count: int = 6) -> dict[str, object]:
    """Return the seconds of the whole recipe in one call."""
    seconds = []
    for seed in range(count):
        values = {"preset": "nano-baxl", "prompt": "1girl, blue hair, portrait", "seed": seed}
        begin = time.monotonic()
        expanded = request.expand_request(read_form(request.PictureForm, values))
        assert expanded is not None
        list(
            generate(
                request.build_cells(read_form(request.PictureForm, {**values, "prompt": expanded.prompt}))
            )
        )
        seconds.append(time.monotonic() - begin)
    return {"seconds": statistics.median(seconds)}


def score_details(count: int = 12) -> dict[str, object]:
    """Compare small faces with and without details, everything else the same.

    Returns how much sharper their boxes are, and how many pixels changed outside the masks.
    """
    ratios, outside = [], 0
    for seed in range(count):
        asked = {
            "preset": "nano",
            "prompt": "1girl, blue hair, smile, full body, flat color",
            "seed": seed,
            "detail": True,
        }
        (cell,) = request.build_cells(read_form(request.PictureForm, asked))
        *_, after = generate([cell])
        *_, before = generate([replace(cell, request=replace(cell.request, detail=None))])
        assert isinstance(after, Picture)
        assert isinstance(before, Picture)
        found = find_detail_regions([before.image], [cell.request], native_size=128)[0]
        anywhere = np.zeros((before.image.height, before.image.width), bool)
        for place in found:
            anywhere |= place.mask > 0
            box = mask_bounds(place.mask)
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
        ("faces", lambda: score_detector(Detector(tools.fetch_tool("detector", "nano face")))),
        ("upscaler", score_upscaler),
        ("expander", score_expander),
        ("recipe", time_recipe),
    ):
        report[name] = part()
        print(name, report[name], flush=True)
    (ROOT / "tests" / "bench" / "results" / "recipe.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
