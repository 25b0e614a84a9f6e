"""The Train tab: pictures, what a run will take, its progress, and Hugging Face Jobs.

May import `tabs.shared`, `tabs.server` and `core`; no other page.
"""
