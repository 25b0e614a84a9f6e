"""The base models that can be chosen: of the table, a person's own checkpoints, and of the Hub."""

from pathlib import Path
from typing import Any

from core.hub.names import explain_other_address, is_hub_name
from core.models import folders, from_hub
from core.models.model_settings import apply_settings
from core.schema import presets
from core.schema.errors import UserError
from core.schema.types import Model

MAX_LISTED = 12
"""Names of models that an error lists."""
OWN_CHECKPOINT_TAGGER = "WD ViT v3"
"""What reads the tags of pictures of a person's own checkpoint, as of every SDXL model."""
VAE_SUFFIX = ".vae"
"""How the name of a VAE ends that lies beside the checkpoint that it belongs to, as A1111 has it."""


def find_model(name: Any) -> Model:
    """Return the model of that name as a person set it.

    It is one of the table, a checkpoint of one's own, or a Hub id at a commit. Raises `UserError`
    listing the names there are.
    """
    if is_hub_name(name):
        return apply_settings(from_hub.resolve_base(from_hub.pin_base(name)))
    if not isinstance(name, str):
        raise UserError("model", f"{str(name)[:80]!r} is not the name of a model.")
    if why := explain_other_address(name):
        raise UserError("model", why)
    known = presets.get_models()
    if name not in known:
        known = _list_own_checkpoints()
    if (found := known.get(name) or known.get(name.strip().removesuffix(".safetensors"))) is None:
        names = [*list_models()]
        shown = ", ".join(names[:MAX_LISTED]) + (" …" if len(names) > MAX_LISTED else "")
        raise UserError("model", f"{name[:80]!r} is unknown. Use one of: {shown}, or a Hub id owner/name.")
    return apply_settings(found)


def find_donor(model: Model) -> Model:
    """Return the model that gives the parts that another lacks. Raises `UserError` if it is not here."""
    try:
        return find_model(model.donor)
    except UserError as error:
        raise UserError(
            "model", f"{model.title} takes missing parts from {model.donor}, which is not here"
        ) from error


def list_models() -> dict[str, Model]:
    """Return the models of the table, then a person's own checkpoints, by name."""
    return presets.get_models() | _list_own_checkpoints()


def _list_own_checkpoints() -> dict[str, Model]:
    """Return a person's own checkpoints by name, each with the VAE that lies beside it.

    One that has a name of the table says in brackets where it lies.
    """
    files = folders.list_files("checkpoint")
    vaes = {file: name for name, file in files.items() if file.stem.endswith(VAE_SUFFIX)}
    found = {}
    for name, file in sorted(files.items()):
        if file in vaes:
            continue
        if name in presets.get_models():
            name = f"{name} ({file.parent.name})"
        beside = file.with_name(f"{file.stem}{VAE_SUFFIX}.safetensors")
        found[name] = Model(
            name=name,
            title=name,
            source=str(file),
            variant=_find_variant(file),
            vae=str(beside) if beside in vaes else None,
            tagger=OWN_CHECKPOINT_TAGGER,
            licence="unknown",
        )
    return found


def _find_variant(place: Path) -> str | None:
    """Return `fp16` for a folder in diffusers' layout that holds its weights in that variant alone."""
    weights = [file.name for file in (place / "unet").glob("*.safetensors")] if place.is_dir() else []
    return "fp16" if weights and all(".fp16" in name for name in weights) else None
