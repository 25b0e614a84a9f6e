"""Make pictures from requests: read a request, expand its tags, batch it, and run it by stages.

May import `models` and the rooms below. `pipeline.generate` runs the stages and takes off again
whatever it puts on a model.
"""
