"""The doors: wiring, servers, settings, command line, and two planes that never import each other (v1, admin)."""
