"""Readers of what other tools write into pictures, one a file.

Each takes a picture's texts by name and returns them in A1111's words, or `None` for those of
another tool. May import the rest of `prompts` except `png_metadata`, and the floors below.
"""
