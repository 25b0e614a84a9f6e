"""The named endpoints, the same for gradio_client, scripts and curl; the rest is private.

May import `tabs.shared`, `tabs.server` and `core`; no page.
"""
