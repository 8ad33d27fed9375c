"""Versions taken out of the gateway: as a bundle, merged into the base, quantised; and how each is served."""
