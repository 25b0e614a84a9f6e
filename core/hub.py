"""A LoRA from the Hub: `owner/name` or `owner/name:file.safetensors`, anonymously, at the commit that it has now."""

import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError, SafetensorsParsingError

from core.digest import content
from core.lorafile import LARGEST, check_kind
from core.types import UserError

ID = re.compile(r"[\w.\-]{1,96}/[\w.\-]{1,96}(?::[\w.\-/ ()+]{1,200}\.safetensors)?")


def is_id(text: str) -> bool:
    """Whether the text has the form of a Hub id."""
    return bool(ID.fullmatch(text)) and ".." not in text


def fetched(text: str) -> Path:
    """The file on this machine. Raises `UserError` in one sentence: private, gated or gone, no or several LoRA files, too large, offline."""
    repo, _, name = text.partition(":")
    try:
        api = HfApi(token=False)
        found = api.model_info(repo, files_metadata=True, token=False)
        sizes = {each.rfilename: each.size or LARGEST + 1 for each in found.siblings or [] if each.rfilename.endswith(".safetensors")}
        if not name and len(sizes) != 1:
            what = f"holds {len(sizes)} safetensors files ({', '.join(list(sizes)[:5])})" if sizes else "holds no safetensors file"
            raise UserError(f"lora: {repo} {what}; name one as {repo}:file.safetensors.")
        name = name or next(iter(sizes))
        if name not in sizes:
            raise UserError(f"lora: {repo} has no {name[:60]}; it has {', '.join(list(sizes)[:5]) or 'no safetensors file'}.")
        if sizes[name] > LARGEST:
            raise UserError(f"lora: {name} has {sizes[name]:,} bytes; a LoRA has up to {LARGEST:,}.")
        header = api.parse_safetensors_file_metadata(repo, name, revision=found.sha, token=False)  # its first bytes only
        check_kind(header.tensors, f"lora: {name}")
        if sizes[name] > (free := _free()):
            raise UserError(f"lora: {name} has {sizes[name]:,} bytes, and the disk has room for {free:,}.")
        file = Path(hf_hub_download(repo, name, revision=found.sha, token=False))
        wanted = next((each.lfs.sha256 for each in found.siblings or [] if each.rfilename == name and each.lfs), None)
        if wanted and content(file) != wanted:  # the client looks at the size alone
            file.resolve().unlink()
            raise UserError(f"lora: {name} came in other than the Hub says it is; try again.")
        return file
    except SafetensorsParsingError as error:
        raise UserError(f"lora: {repo}'s {name} is not a whole safetensors file.") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(f"lora: {repo} is gated, private or gone on the Hub.") from error
    except HFValidationError as error:
        raise UserError(f"lora: {repo} is no name that the Hub has.") from error
    except (HTTPError, OSError, RuntimeError) as error:  # offline, cut off on the way; hf_xet says RuntimeError
        raise UserError(f"lora: {repo} is not to be had: the Hub cannot be reached.") from error


def _free() -> int:
    """Bytes that the disk of the Hub's cache has left."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
