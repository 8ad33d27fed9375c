"""One linear migration history for all rooms, run by adapters/db.py. Shipped as package data."""
