"""Prompts: A1111's grammar, their conditioning, infotext, and the PNG that carries it.

May import `system` and `schema`.
"""
