"""The data plane: the hot path of one inference request, top to bottom.

Read in this order: routes → proxy → auth → limits → routing → upstream → meter
(+ wire: the only OpenAI JSON; fields: the allow-list tables; dialect: one row per route).
No SQL, no disk, no FastAPI, no admin in here. Everything it knows comes from one immutable Snapshot.
"""
