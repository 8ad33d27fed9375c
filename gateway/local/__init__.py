"""What runs on this machine: managed environments, the vLLM process, the demo, doctor.

May know operating systems, processes and files; must not know HTTP routes, SQL or how a request is answered.
"""
