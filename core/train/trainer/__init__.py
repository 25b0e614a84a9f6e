"""The training loop and all that it needs.

Batches, adapter, loss, optimiser, states, previews, the exported LoRA. May import `generate`,
`dataset` and the layers below them, but nothing of `train` around it, so that a process of its own
can run it.
"""
