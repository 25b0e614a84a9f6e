"""The drawn world that nano learns: what can be in a picture, and the booru tags that describe it.

A `Scene` is everything that `core.nano.draw` needs to draw a picture again; `sample_scene` draws
one at random and `list_tags` names what can be seen in it, each tag once, nothing that is hidden.
"""

from dataclasses import dataclass

import numpy as np

HAIR_STYLES = ("short hair", "long hair", "twintails", "ponytail")
HAIR = (
    "blonde hair",
    "pink hair",
    "blue hair",
    "black hair",
    "white hair",
    "red hair",
    "green hair",
    "purple hair",
)
EYES = ("blue eyes", "red eyes", "green eyes", "yellow eyes", "purple eyes")
HALOS = ("blue halo", "pink halo", "yellow halo")
OUTFITS = ("school uniform", "hoodie", "maid", "kimono")
MOUTHS = ("smile", "open mouth", "frown")
BACKGROUNDS = ("white background", "blue sky", "night sky", "sunset", "classroom", "beach", "forest")
FRAMINGS = ("portrait", "upper body", "full body")
SIDES = ("on left", "on right")
OBJECTS = ("apple", "star", "heart", "flower")
BUILDINGS = ("house", "tree")
ABSTRACTS = ("gradient", "stripes", "circles")
STYLES = ("flat color", "airbrush", "sketch", "pixel art")

# Tags of one group exclude each other: a picture shows at most one.
GROUPS = (
    HAIR_STYLES,
    HAIR,
    EYES,
    HALOS,
    OUTFITS,
    MOUTHS,
    BACKGROUNDS,
    FRAMINGS,
    SIDES,
    OBJECTS,
    BUILDINGS,
    ABSTRACTS,
    STYLES,
)
SINGLES = ("1girl", "no humans", "scenery", "abstract", "blush", "closed eyes", "low quality")
TAGS = SINGLES + tuple(tag for group in GROUPS for tag in group)

SIZES = ((128, 128), (128, 192), (192, 128))
"""Width and height in pixels of the pictures that nano is trained on: square, 2:3 and 3:2."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture in words. A part that is not there is `None` (or `False`)."""

    width: int
    height: int
    seed: int
    """Seeds what tags do not name: jitter, cloud and star positions, gradient colours."""
    subject: str
    """`1girl`, `object`, `scenery` or `abstract`."""
    style: str
    background: str | None = None
    framing: str | None = None
    side: str | None = None
    hair_style: str | None = None
    hair: str | None = None
    eyes: str | None = None
    """`None` when the eyes are closed."""
    mouth: str | None = None
    blush: bool = False
    halo: str | None = None
    outfit: str | None = None
    thing: str | None = None
    """The object, building or pattern of a picture without a person."""
    low_quality: bool = False


def sample_scene(rng: np.random.Generator, size: tuple[int, int] = (128, 128)) -> Scene:
    """Return a random scene; `size` is (width, height) in pixels."""

    def pick(options: tuple[str, ...], p: tuple[float, ...] | None = None) -> str:
        return str(rng.choice(options, p=p))

    def flip_coin(chance: float) -> bool:
        return bool(rng.random() < chance)

    subject = pick(("1girl", "object", "scenery", "abstract"), (0.8, 0.06, 0.07, 0.07))
    style = pick(STYLES, (0.46, 0.28, 0.13, 0.13))
    common = {
        "width": size[0],
        "height": size[1],
        "seed": int(rng.integers(2**31)),
        "style": style,
        "low_quality": flip_coin(0.04),
    }
    if subject == "abstract":
        return Scene(subject=subject, thing=pick(ABSTRACTS, (0.6, 0.2, 0.2)), **common)
    background = pick(BACKGROUNDS, (0.28,) + (0.12,) * 6)
    if subject == "object":
        return Scene(subject=subject, thing=pick(OBJECTS), background=background, **common)
    if subject == "scenery":
        outdoors = background if background not in ("white background", "classroom") else "blue sky"
        thing = pick(BUILDINGS) if flip_coin(0.6) else None
        return Scene(subject=subject, thing=thing, background=outdoors, **common)
    # A pixel of pixel art is 4 wide: the face of a full figure would be too coarse to read.
    framing = pick(FRAMINGS[:2] if style == "pixel art" else FRAMINGS)
    aside = framing != "portrait" and size[0] >= size[1] and flip_coin(0.3)
    return Scene(
        subject=subject,
        background=background,
        framing=framing,
        side=pick(SIDES) if aside else None,
        hair_style=pick(HAIR_STYLES),
        hair=pick(HAIR),
        eyes=None if flip_coin(0.15) else pick(EYES),
        mouth=pick(MOUTHS),
        blush=flip_coin(0.25),
        halo=pick(HALOS) if flip_coin(0.5) else None,
        outfit=None if framing == "portrait" else pick(OUTFITS),
        **common,
    )


def list_tags(scene: Scene) -> list[str]:
    """List what can be seen in the scene, the subject first, the style last."""
    found: list[str | None] = []
    if scene.subject == "1girl":
        found = ["1girl", scene.hair_style, scene.hair, scene.eyes or "closed eyes", scene.mouth]
        found += ["blush" if scene.blush else None, scene.halo, scene.outfit, scene.framing, scene.side]
    else:
        found = ["no humans", scene.subject if scene.subject != "object" else None, scene.thing]
    found += [scene.background, scene.style, "low quality" if scene.low_quality else None]
    return [tag for tag in found if tag]


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a prompt that a person might write for the scene: some of its tags, in any order.

    The subject comes first; the style is named half of the time, so that a prompt without one may
    give every style; a tenth of the prompts contains a word that the world does not know.
    """
    subject, *rest = list_tags(scene)
    rest = [tag for tag in rest if tag not in STYLES or rng.random() < 0.5]
    keep = (
        len(rest)
        if rng.random() < 0.5
        else int(rng.integers(2, len(rest) + 1))
        if len(rest) > 2
        else len(rest)
    )
    chosen = [rest[i] for i in rng.permutation(len(rest))[:keep]]
    if scene.low_quality and "low quality" not in chosen:
        chosen.append("low quality")
    if not scene.low_quality and rng.random() < 0.3:
        chosen.append("masterpiece")
    if rng.random() < 0.1:
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(3, 9))))
        chosen.insert(int(rng.integers(len(chosen) + 1)), word)
    return ", ".join([subject, *chosen])
