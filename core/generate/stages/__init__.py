"""The stages of a picture: denoise, hires with its upscaler, details, grain; and the sandbox.

Denoise has its schedules and solvers, details have their detector and masks. May import `models` and
the rooms below, but nothing of `generate` outside this package.
"""
