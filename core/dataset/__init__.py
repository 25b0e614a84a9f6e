"""Datasets: turn zips and folders of pictures into captioned samples in kohya's buckets.

May import `models` and what lies below.
"""
