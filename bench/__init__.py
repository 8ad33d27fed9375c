"""The side-by-side benchmark: peers over one fast mock engine, one load generator, one report."""
