"""The Hugging Face Hub: its client, downloads that fit on the disk, and checks that fetch nothing.

The checks run before a job has its place. May import `system` and `schema`.
"""
