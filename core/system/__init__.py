"""The machine below the studio: files, disk, device, threads, the log of calls, shutdown.

May import `schema`. Knows nothing about models, pictures or LoRAs.
"""
