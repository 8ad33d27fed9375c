"""Public but not hot: what OpenAI's API has beside inference. Parses, calls one service function, formats.

Must not import gateway.admin, nor be imported by gateway.v1.
"""
