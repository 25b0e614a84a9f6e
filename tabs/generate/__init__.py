"""The Generate tab: its controls, its stages, and settings in and out of it.

May import `tabs.shared`, `tabs.server` and `core`; no other page.
"""
