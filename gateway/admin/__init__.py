"""Control plane: the admin API's FastAPI app. Parses, calls one service function, formats; decides nothing.

Must not import gateway.v1: the two planes meet in gateway/app.py alone.
"""
