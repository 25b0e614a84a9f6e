"""Sweep one LoRA over strengths: plan, cache the cells, measure them, decide the verdict, report.

May import `generate` and the layers below it. Knows nothing of GPU access: `SweepStudy.run` is
given the function that makes pictures.
"""
