"""Training data: reading, checking and writing it, with real files in every form."""
