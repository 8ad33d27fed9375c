"""LoRA adapters: what exists, which version is live, where it is loaded.

Owns the registry, the store of weights on disk, and the only client of the engines' load and unload
calls. Bottom room: also holds the two bricks all rooms share (db, the error base). Must not know HTTP
doors, keys or training. ("Adapter" always means LoRA adapter; not installable beside AdapterHub's package.)
"""
