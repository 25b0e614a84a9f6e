"""The Sweep tab: a LoRA over strengths, other axes, and a check by eye.

May import `tabs.shared`, `tabs.server` and `core`; no other page.
"""
