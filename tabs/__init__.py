"""The page: a tab each, the named endpoints, and the layer around Gradio.

Pages and `api` import `shared`, `shared` imports `server`, and all of them import `core`; no page
imports another.
"""
