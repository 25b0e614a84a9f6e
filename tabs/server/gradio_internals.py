"""All that the app uses of Gradio's insides, which no release promises; nothing else imports them.

`TRIED_WITH` is the version that they were tried with. When Gradio moves, look through the uses of
these names, run the suite, and write the new version here.
"""

from gradio import processing_utils, queueing, route_utils, routes
from gradio.block_function import BlockFunction
from gradio.blocks import Block
from gradio.components import Number
from gradio.context import LocalContext
from gradio.exceptions import ComponentProcessingError
from gradio.helpers import special_args
from gradio.route_utils import API_PREFIX
from gradio.state_holder import SessionState

TRIED_WITH = "6.31.0"

# A preset moves the ends of sliders. A press that is on its way meanwhile brings a value that the new
# ends refuse, in a sentence that names no field; the forms check every number themselves.
Number.raise_if_out_of_bounds = staticmethod(lambda *_: None)

__all__ = [
    "API_PREFIX",
    "Block",
    "BlockFunction",
    "ComponentProcessingError",
    "LocalContext",
    "SessionState",
    "processing_utils",
    "queueing",
    "route_utils",
    "routes",
    "special_args",
]
