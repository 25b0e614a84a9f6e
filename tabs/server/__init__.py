"""The layer around Gradio.

Calls, sessions, the origin guard, health, visitors, and the files that a page shows. May import
`core`. Whatever touches Gradio's internals is here.
"""
