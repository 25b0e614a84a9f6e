"""How the embedded weights are made: a drawn world, and every network of the family trained on it.

May import `generate.stages.detector`, and nothing else of the studio; nothing that runs imports it.
"""
