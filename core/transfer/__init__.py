"""LoRAs on other base models: a sweep for each pair, compared with the LoRA's result at home.

May import `sweep`, `train.trainer` and the layers below them.
"""
