"""Axes besides strength, and two LoRAs together, with answers that are known beforehand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError, ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.runtime import gpu
from core.schema.events import Failed
from core.schema.records import read_form
from core.sweep.axes_report import build_axes_report, build_pair_report
from core.sweep.axes_study import AxesForm, AxesStudy, PairForm, plan_axes, plan_pair
from core.sweep.interaction import find_interaction
from core.sweep.plateau import PointVerdict, find_plateau
from tests.sweep.conftest import EXAMPLE, PROMPTS
