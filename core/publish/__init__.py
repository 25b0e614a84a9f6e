"""Publish a LoRA on the Hub: its card, its bundle of files, one commit.

May import `transfer` and the layers below it.
"""
