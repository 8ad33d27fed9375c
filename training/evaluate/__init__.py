"""Is a new version better? Asked through the engine that serves, against the base and what is live.

May use training/data and training/gatewayclient; knows no job, no queue and no trainer.
"""
