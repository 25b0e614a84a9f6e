"""LoRA files: read the keys, check the file, apply it to a model and take it off again, rewrite it.

May import `system` and `schema`. An applied LoRA always comes off again, and the weights are then
bit for bit what they were.
"""
