"""Axes besides strength, and two LoRAs together, with answers that are known beforehand."""
