"""The machinery of one run: the trainer's process, what it writes, how it is stopped, gone on with and judged."""
