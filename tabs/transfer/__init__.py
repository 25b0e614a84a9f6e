"""The Transfer tab: LoRAs over base models, and training on several bases first.

May import `tabs.shared`, `tabs.server` and `core`; no other page.
"""
