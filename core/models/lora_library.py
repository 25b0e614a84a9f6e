"""Finds the LoRAs that are chosen: by name in the library, on the Hub, or in a prompt's tags."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.hub import client as hub
from core.hub.names import explain_other_address, is_hub_name
from core.lora import apply as lora
from core.lora.blocks import parse_block_weights
from core.models import folders, from_hub
from core.prompts.grammar import LoraTag, extract_lora_tags, is_lora_tag, read_lora_tag
from core.schema.errors import UserError
from core.schema.limits import STRENGTH
from core.schema.presets import PRESETS_FOLDER
from core.schema.types import LoraUse
from core.system.tensor_files import calculate_payload_sha256

EXAMPLES_FOLDER = PRESETS_FOLDER / "loras"
"""The examples that come with the studio."""
MAX_LISTED = 20
"""Names of the library that an error lists."""
MAX_LORAS = 16
"""LoRAs on one picture."""


def list_loras() -> dict[str, Path]:
    """Return the library's files by name, in the order of names: a person's own, and the examples.

    Only names are looked at, no content.
    """
    found = {file.stem: file for file in EXAMPLES_FOLDER.glob("*.safetensors")} | folders.list_files("lora")
    return dict(sorted(found.items(), key=lambda each: each[0].casefold()))


def find_name(file: Path) -> str:
    """Return the name by which a tag finds a file: the library's, or its own if it is not in there."""
    return next((name for name, own in list_loras().items() if own == file), file.stem)


def locate_lora(name: str) -> Path:
    """Return the file of a LoRA in the library. Raises `UserError` listing the names there are."""
    library = list_loras()
    for own, file in library.items():  # only a listed name becomes a path
        if name in (own, slugify(own)):
            return file
    shown = ", ".join([*library][:MAX_LISTED]) + (" …" if len(library) > MAX_LISTED else "")
    raise UserError("lora", f"{name[:60]!r} is not in the LoRA library, which has {shown or 'none'}.")


def find_lora(name: str) -> Path:
    """Return the file of a LoRA in the library or on the Hub (`core.hub.names`).

    Raises `UserError` if it is not found or not allowed.
    """
    if is_hub_name(name):
        return from_hub.fetch_lora(name)
    if why := explain_other_address(name):
        raise UserError("lora", why)
    return locate_lora(name)


def find_by_hash(digest: str) -> str | None:
    """Return the name in the library of the LoRA with this hash of its tensors, as `Lora hashes` has it.

    Only headers are read: a file is found if its trainer wrote `sshs_model_hash`, as kohya's does.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", digest):
        return None
    for name, file in list_loras().items():
        with suppress(UserError):
            if lora.get_lora_file(str(file)).metadata.get("sshs_model_hash", "").startswith(digest.lower()):
                return name
    return None


def slugify(name: str) -> str:
    """Return the name as Civitai reads it in a tag."""
    return re.sub(r"[^\w.\-]", "_", name)


def parse_lora_tags(prompt: str) -> tuple[LoraUse, ...]:
    """Parse the `<lora:name:1.5>` tags of a prompt.

    Raises `UserError` for a tag that cannot be read, and for a name, a strength or a block list that
    is not allowed.
    """
    _, tags, unread = extract_lora_tags(prompt)
    if wrong := next(filter(is_lora_tag, unread), None):
        try:
            read_lora_tag(wrong)
        except ValueError as error:
            raise UserError(
                "prompt",
                f"{wrong[:60]!r} is not valid: {error}. "
                "Use <lora:name:strength>, with lbw= for block weights.",
            ) from error
    return check_loras([_make_use(str(locate_lora(tag.name)), tag) for tag in tags])


def _make_use(file: str, tag: LoraTag) -> LoraUse:
    return LoraUse(
        path=file,
        strength=tag.strength,
        text_strength=None if tag.text_strength == tag.strength else tag.text_strength,
        blocks=tag.blocks,
        start=tag.start,
        stop=tag.stop,
    )


def parse_lora_list(entries: Any) -> tuple[LoraUse, ...]:
    """Parse a JSON list of `{"lora", "strength", "text_strength", "blocks"}` tables.

    Raises `UserError` for a name, a setting, a strength or a block list that is not allowed.
    """
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise UserError("loras", 'use a list of tables, such as [{"lora": "name", "strength": 1.5}].')
    wanted: list[LoraUse] = []
    for number, one in enumerate(entries, 1):
        if unknown := set(one) - {"lora", "strength", "text_strength", "blocks"}:
            raise UserError(
                "loras",
                f"{sorted(unknown)[0][:40]!r} is not a setting; "
                "the settings are lora, strength, text_strength and blocks.",
            )
        try:
            file = find_lora(str(one.get("lora", "")))
            settings = {"strength": 1.0, **{k: v for k, v in one.items() if k != "lora"}}
            wanted += check_loras([LoraUse(**settings, path=str(file))])
        except UserError as error:
            raise UserError("loras", f"entry {number}, {error}") from error
    return check_loras(wanted)


def check_loras(uses: Sequence[LoraUse]) -> tuple[LoraUse, ...]:
    """Return the uses if strengths, blocks and files are allowed. Raises `UserError` otherwise."""
    low, high = STRENGTH
    if len(uses) > MAX_LORAS:
        raise UserError("lora", f"{len(uses)} are too many; the limit is {MAX_LORAS} per image.")
    for use in uses:
        for strength in (use.strength, use.strength if use.text_strength is None else use.text_strength):
            if (
                isinstance(strength, bool)
                or not isinstance(strength, int | float)
                or not low <= strength <= high
            ):
                raise UserError(
                    "strength",
                    f"{str(strength)[:40]} is not valid for {Path(use.path).stem}. "
                    f"Use a number from {low:g} to {high:g}.",
                )
        if use.blocks is not None:
            try:
                parse_block_weights(str(use.blocks))
            except ValueError as error:
                raise UserError("blocks", f"{str(use.blocks)[:60]!r} is not valid: {error}.") from error
        lora.get_lora_file(use.path)
    return tuple(uses)


def format_lora_tag(use: LoraUse, name: str | None = None) -> str:
    """Return the use as a tag of a prompt; `name` is what `find_name` finds for its file, if it is known."""
    both = (use.strength,) if use.text_strength is None else (use.text_strength, use.strength)
    strengths = ":".join(repr(float(strength)).removesuffix(".0") for strength in both)
    name = slugify(name or find_name(Path(use.path)))
    named = {"lbw": use.blocks or None, "start": use.start, "stop": use.stop}
    rest = "".join(f":{key}={value}" for key, value in named.items() if value is not None)
    return f"<lora:{name}:{strengths}{rest}>"


def collect_lora_tags(uses: Sequence[LoraUse]) -> tuple[str, ...]:
    """Return the LoRAs' triggers and the main tags that they were trained on.

    Main tags are in at least half as many captions as the most frequent one.
    """
    said: list[str] = []
    for use in uses:
        file = lora.get_lora_file(use.path)
        said += [part.strip() for part in (file.trigger or "").split(",") if part.strip()]
        counts = file.tags
        most = max(counts.values(), default=0)
        said += [tag.replace("_", " ") for tag, count in counts.items() if 2 * count >= most][:20]
    return tuple(dict.fromkeys(tag[:60] for tag in said))[:30]


def hash_loras(uses: Sequence[LoraUse]) -> dict[str, str]:
    """Return infotext's `Lora hashes`, and `Lora origins` with where on the Hub they are from.

    A hash is the first 12 digits of the sha256 of what follows the file's header.
    """
    files = [Path(path) for path in dict.fromkeys(use.path for use in uses)]
    if not files:
        return {}
    parts = [
        f"{file.stem.translate({58: None, 44: None})}: {calculate_payload_sha256(file)[:12]}"
        for file in files
    ]
    origins = {file.stem: named for file in files if (named := hub.find_origin(file))}
    return {"Lora hashes": ", ".join(parts)} | (
        {"Lora origins": ", ".join(f"{stem}: {named}" for stem, named in origins.items())} if origins else {}
    )
