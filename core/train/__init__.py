"""Runs of trainings: start, queue, watch and fork them here, or send them to a Hugging Face Job.

Also who may see which. May import `generate`, `dataset` and the layers below them. The training
itself is in `trainer`.
"""
