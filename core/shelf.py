"""The LoRAs that are chosen: by their name on this machine's shelf, or by a file; and what a prompt's tags ask for."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import hub, lora, paths, pulled
from core.blocks import weights
from core.digest import payload
from core.limits import STRENGTH
from core.presets import FOLDER
from core.prompts import LoraTag, networks
from core.types import LoraUse, UserError

FOLDERS = (paths.MODELS / "loras", FOLDER / "loras")
"""The owner's files, and the examples that come with the studio."""
MOST = 16
"""LoRAs on one picture."""


def names() -> list[str]:
    """The LoRAs of the shelf, by the names of their files."""
    return sorted({file.stem for folder in FOLDERS for file in folder.glob("*.safetensors")})


def path(name: str) -> Path:
    """Where the shelf has it. Raises `UserError` with the names there are."""
    for own in names():  # nothing but a name of the list becomes a path
        if name in (own, slug(own)):
            return next(file for folder in FOLDERS if (file := folder / f"{own}.safetensors").exists())
    raise UserError(f"lora: {name[:60]!r} is not on the shelf; it has {', '.join(names()) or 'none'}.")


def found(name: str) -> Path:
    """The LoRA of a name of the shelf, or of a Hub id `owner/name` or `owner/name:file.safetensors`. Raises `UserError`."""
    return pulled.lora(name) if hub.is_id(name) else path(name)


def slug(name: str) -> str:
    """The name as Civitai reads it in a tag."""
    return re.sub(r"[^\w.\-]", "_", name)


def uses(prompt: str) -> tuple[LoraUse, ...]:
    """What a prompt's `<lora:name:1.5>` tags ask for. Raises `UserError` for a name, a strength or a block list that is not allowed."""
    return checked([_use(str(path(tag.name)), tag) for tag in networks(prompt)[1]])


def _use(file: str, tag: LoraTag) -> LoraUse:
    return LoraUse(path=file, strength=tag.strength, text_strength=None if tag.text_strength == tag.strength else tag.text_strength, blocks=tag.blocks)


def listed(said: Any) -> tuple[LoraUse, ...]:
    """What a JSON list of `{"lora", "strength", "blocks"}` asks for. Raises `UserError` as `uses` does."""
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        raise UserError('loras: it takes a list of tables, such as [{"lora": "name", "strength": 1.5}].')
    wanted = []
    for one in said:
        if unknown := set(one) - {"lora", "strength", "text_strength", "blocks"}:
            raise UserError(f"loras: {sorted(unknown)[0][:40]!r} is not a setting; the settings are lora, strength, text_strength and blocks.")
        wanted.append(LoraUse(**{"strength": 1.0, **{k: v for k, v in one.items() if k != "lora"}}, path=str(found(str(one.get("lora", ""))))))
    return checked(wanted)


def checked(found: Sequence[LoraUse]) -> tuple[LoraUse, ...]:
    """The uses, if strengths, blocks and files are allowed; else `UserError`."""
    low, high = STRENGTH
    if len(found) > MOST:
        raise UserError(f"lora: {len(found)} are too many; up to {MOST} are put on one picture.")
    for use in found:
        for strength in (use.strength, use.strength if use.text_strength is None else use.text_strength):
            if isinstance(strength, bool) or not isinstance(strength, int | float) or not low <= strength <= high:
                raise UserError(f"strength: {str(strength)[:40]} is not allowed for {Path(use.path).stem}; it takes a number from {low:g} to {high:g}.")
        if use.blocks is not None:
            try:
                weights(str(use.blocks))
            except ValueError as error:
                raise UserError(f"blocks: {str(use.blocks)[:60]!r} is not allowed: {error}.") from error
        lora.file(use.path)
    return tuple(found)


def tag(use: LoraUse) -> str:
    """The use as a prompt says it."""
    both = (use.strength,) if use.text_strength is None else (use.text_strength, use.strength)
    strengths = ":".join(repr(float(strength)).removesuffix(".0") for strength in both)
    return f"<lora:{slug(Path(use.path).stem)}:{strengths}{f':lbw={use.blocks}' if use.blocks else ''}>"


def tags(found: Sequence[LoraUse]) -> tuple[str, ...]:
    """What the LoRAs stand for: their triggers, and the tags of at least half of the captions that they were trained on."""
    said: list[str] = []
    for use in found:
        file = lora.file(use.path)
        said += [part.strip() for part in (file.trigger or "").split(",") if part.strip()]
        counts = file.tags
        most = max(counts.values(), default=0)
        said += [tag.replace("_", " ") for tag, count in counts.items() if 2 * count >= most][:20]
    return tuple(dict.fromkeys(tag[:60] for tag in said))[:30]


def hashes(found: Sequence[LoraUse]) -> dict[str, str]:
    """Infotext's `Lora hashes`: name -> the first 12 digits of the sha256 of what follows the file's header; and where on the Hub they are from."""
    if not found:
        return {}
    parts = [f"{Path(use.path).stem.translate({58: None, 44: None})}: {payload(Path(use.path))[:12]}" for use in found]
    origins = {Path(use.path).stem: named for use in found if (named := hub.origin(Path(use.path)))}
    return {"Lora hashes": ", ".join(parts)} | ({"Lora origins": ", ".join(f"{stem}: {named}" for stem, named in origins.items())} if origins else {})
