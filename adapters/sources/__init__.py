"""Where adapters come from: folders, archives, uploads, the hub, object stores, the web.

Each becomes a folder with the two files, in a draft of ours; `arrivals` is the door. Must not know what is inside them.
"""
