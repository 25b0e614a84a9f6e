"""What all rooms share: records, events, bounds and presets.

This room imports no other room and no torch, so that everything can import it.
"""
