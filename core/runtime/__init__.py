"""Run the studio: the GPU door and its thread, ZeroGPU, disk clean-up, the check at the start.

May import `train`, `sweep` and the rooms below. Only `gpu` imports `spaces`, which must come before
torch.
"""
