"""Finds the preset that is made for a model: its own, or that of its family."""

import re
from typing import NamedTuple

from safetensors import SafetensorError

from core.hub.preflight import NeedsJob, enter_preflight
from core.models import catalogue, files
from core.models.base_families import FAMILIES, find_base_family, find_family, read_titles, simplify_name
from core.prompts.neutral import compose_neutral_prompts, insert_trigger
from core.schema import presets
from core.schema.errors import UserError
from core.schema.types import Model, PromptPreset

MODEL_PATTERNS = {
    "Kohaku": (r"baxl", "baxl-v3"),
    "Illustrious": (r"(illustrious|il ?xl)[a-z ]*2 ?0(?! ?\d)", "illustrious-xl-2.0"),
    "Animagine": (r"animagine[a-z ]*4|anim4gine", "animagine-xl-4.0"),
}
"""Family -> how a name speaks of one of its models, and the preset that this has for itself."""
WAI = (r"\bwai", "wai-illustrious")
V_PREDICTION = {"noobai-xl": "noobai-xl-vpred"}
"""Preset of a family -> that of its models that predict v."""
