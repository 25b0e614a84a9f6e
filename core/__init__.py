"""What the studio does, without a page: rooms that import only the rooms below them.

From the ground up: `schema`, `system`; `hub`, `lora`, `prompts`; `models`; `dataset`, `generate`;
`sweep`, `train`; `transfer`; `publish`, `runtime`; `nano`. Nothing in `core` knows Gradio, a page
or `app`. import-linter checks this order (contracts in `pyproject.toml`).
"""
