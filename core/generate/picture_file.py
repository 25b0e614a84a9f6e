"""Save a picture as a PNG that says how it was made.

This is the one place where a request becomes the infotext of a file.
"""

from pathlib import Path

from PIL import Image

from core.models import bases, embedding_library, lora_library
from core.prompts.infotext import create_infotext
from core.prompts.png_metadata import save_png
from core.schema.types import Request


def save_picture(picture: Image.Image, request: Request, file: Path) -> str:
    """Write the picture as a PNG with the infotext of its request, and return that text.

    It holds the model, a VAE that is not its own, the hashes of an embedded model, of LoRAs and
    embeddings, and all settings.
    """
    model = bases.find_model(request.model)
    hashes = {
        "Model hash": bases.hash_weights(request.model) or "",
        "VAE": Path(model.vae).name if model.vae else "",
        **lora_library.hash_loras(request.lora_uses),
        **embedding_library.hash_embeddings(request.embeddings),
    }
    text = create_infotext(request, model, hashes)
    save_png(picture, file, text)
    return text
