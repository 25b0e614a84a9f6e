"""Finds the embeddings that a prompt names: a person's files, and those that LoRAs bring along."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from core.lora import apply as lora
from core.lora.file import BUNDLE_PREFIX
from core.models import folders
from core.models.lora_library import parse_lora_tags
from core.prompts.embeddings import COMFYUI_MARK, Mention, find_mentions, get_embedding
from core.schema.errors import UserError
from core.schema.types import EmbeddingUse, LoraUse, Model
from core.system.tensor_files import calculate_sha256

SAFE_SUFFIX = ".safetensors"
MAX_LISTED = 20
"""Names that an error lists."""
HASH_LENGTH = 12
"""Digits of A1111's `TI hashes`; other programs write 10."""


def list_embeddings() -> dict[str, Path]:
    """Return a person's files by the names that prompts use, pickles among them.

    A pickle has its name only where no safetensors file has it.
    """
    files = folders.list_files("embedding", with_suffix=True).items()
    found: dict[str, Path] = {}
    for label, file in sorted(files, key=lambda item: _is_pickle(item[1])):
        found.setdefault(label.replace(file.name, file.stem, 1), file)
    return found


def _is_pickle(file: Path) -> bool:
    return file.suffix.lower() != SAFE_SUFFIX


def find_embeddings(
    prompts: Mapping[str, str], loras: Sequence[LoraUse], model: Model
) -> tuple[EmbeddingUse, ...]:
    """Return what the prompts name, each embedding once; `prompts` has them by field.

    Raises `UserError` with the prompt's field for an `embedding:name` that is not there, whose file
    cannot be used, or that is made for another family than the model. A word that only happens to be
    the name of such a file stays a word (`list_unused_embeddings`).
    """
    found: dict[EmbeddingUse, None] = {}
    for field, mention, result in _read_mentions(prompts, loras, model):
        if isinstance(result, EmbeddingUse):
            found[result] = None
        elif COMFYUI_MARK.match(mention.text):
            raise UserError(field, result.sentence) from result
    return tuple(found)


def list_unused_embeddings(prompts: Mapping[str, str], loras: Sequence[LoraUse], model: Model) -> list[str]:
    """Return a sentence for each word of the prompts that is the name of a file that cannot be used."""
    return [
        f"{mention.text[:60]!r} stays a word: {result.sentence}"
        for mention, result in {
            mention: result
            for _, mention, result in _read_mentions(prompts, loras, model)
            if isinstance(result, UserError)
        }.items()
    ]


def _read_mentions(
    prompts: Mapping[str, str], loras: Sequence[LoraUse], model: Model
) -> Iterator[tuple[str, Mention, EmbeddingUse | UserError]]:
    """Yield field, mention and embedding of each place that names one, or why it cannot be used."""
    words = _list_words(loras)
    for field, prompt in prompts.items():
        for mention in find_mentions(prompt, words):
            try:
                use = _read_mention(mention, words)
                if not model.fits(family := get_embedding(use).family):
                    raise UserError(
                        field,
                        f"the embedding {use.word[:60]!r} is made for {family}, but {model.title} is not of "
                        "that family.",
                    )
            except UserError as error:
                yield field, mention, error
            else:
                yield field, mention, use


def find_countable_embeddings(prompt: str) -> tuple[EmbeddingUse, ...]:
    """Return what a prompt names and can be used: what a prompt that is being written is counted by."""
    loras, found = tuple[LoraUse, ...](), dict[EmbeddingUse, None]()
    with suppress(UserError):  # making the picture says what is wrong
        loras = parse_lora_tags(prompt)
    with suppress(UserError):
        words = _list_words(loras)
        for mention in find_mentions(prompt, words):
            with suppress(UserError):
                found[_read_mention(mention, words)] = None
    return tuple(found)


def find_bundled_embeddings(prompts: Iterable[str], loras: Sequence[LoraUse]) -> tuple[EmbeddingUse, ...]:
    """Return what the prompts name of the embeddings that LoRAs in use bring along."""
    words = _list_bundled(loras)
    mentions = [mention for prompt in prompts for mention in find_mentions(prompt, words)]
    return tuple(dict.fromkeys(_read_mention(each, words) for each in mentions if each.word is not None))


Words = Mapping[str, tuple[Path, str]]
"""Name -> its file, and how the names of its tensors begin there."""


def _list_words(loras: Sequence[LoraUse]) -> Words:
    """Return every name that works; a LoRA's own go before files."""
    return {word: (file, "") for word, file in list_embeddings().items()} | _list_bundled(loras)


def _list_bundled(loras: Sequence[LoraUse]) -> dict[str, tuple[Path, str]]:
    return {
        word: (Path(use.path), f"{BUNDLE_PREFIX}{word}.")
        for use in loras
        if use.strength or use.text_strength
        for word in lora.get_lora_file(use.path).embeddings
    }


def _read_mention(mention: Mention, words: Words) -> EmbeddingUse:
    """Return the embedding that is named, after reading its vectors.

    Raises `UserError` if there is none of that name or its file cannot be used.
    """
    if mention.word is None:
        shown = ", ".join(sorted(words)[:MAX_LISTED]) + (" …" if len(words) > MAX_LISTED else "")
        raise UserError(
            "embedding", f"{mention.text[:60]!r} is not among the embeddings, which are {shown or 'none'}."
        )
    file, prefix = words[mention.word]
    if not prefix and _is_pickle(file):
        raise UserError(
            "embedding",
            f"{mention.text[:60]!r} is the file {file.name}, a pickle, which can contain code. Use the "
            "embedding as safetensors, or take the file out of the folder.",
        )
    try:
        sha256 = calculate_sha256(file)
    except OSError as error:
        raise UserError("embedding", f"{file.name} cannot be read.") from error
    use = EmbeddingUse(word=mention.word, path=str(file), sha256=sha256, key_prefix=prefix)
    get_embedding(use)
    return use


def hash_embeddings(uses: Sequence[EmbeddingUse]) -> dict[str, str]:
    """Return infotext's `TI hashes`, with the first 12 digits of each file's sha256.

    What a LoRA brings along is in `Lora hashes`.
    """
    parts = [f"{_clean_word(use.word)}: {use.sha256[:HASH_LENGTH]}" for use in uses if not use.key_prefix]
    return {"TI hashes": ", ".join(parts)} if parts else {}


def describe_other_embeddings(hashes: str, prompts: Iterable[str]) -> list[str]:
    """Return a sentence for each embedding of a picture's `TI hashes` that is not here, or is another.

    One that the prompts name as `embedding:name` is left to `find_embeddings`, which refuses it.
    """
    refused = " ".join(prompts).lower()
    here = {_clean_word(word).lower(): file for word, file in list_embeddings().items()}
    said = []
    for part in filter(None, hashes.split(",")[:MAX_LISTED]):
        word, _, digest = (each.strip() for each in part.rpartition(":"))
        if (file := here.get(word.lower())) is None:
            if f"embedding:{word.lower()}" in refused:
                continue
            said.append(f"The embedding {word[:60]} is not here; its name is read as words.")
        elif not calculate_sha256(file).startswith(digest.lower()):
            said.append(f"The embedding {word[:60]} is another file here than the one in the image.")
    return said


def _clean_word(word: str) -> str:
    """Return a name as it stands in `TI hashes`."""
    return word.translate({58: None, 44: None})
