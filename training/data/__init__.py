"""Training data: what a file holds, what is wrong with it, and how it is written for the trainer.

No FastAPI, no database. A file is read as a stream of rows (row.py) and findings (finding.py), never whole.
"""
