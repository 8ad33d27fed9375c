"""Rows made from rows by another model, at any OpenAI-compatible endpoint; each one is marked with its parent.

`making` asks for one, `judging` refuses what is no good, `journal` keeps both on disk as they come, `run` does it all.
"""
