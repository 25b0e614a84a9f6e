"""Models and LoRAs by name: find them here or on the Hub, load them, verify their weights.

Verifying makes sure that a job left a model as it was. Base models, tools (upscalers, detectors,
taggers), the LoRA library. May import `hub`, `lora`, `prompts` and what lies below.
"""
