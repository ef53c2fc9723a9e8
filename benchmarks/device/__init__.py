"""The device section of the benchmarks: what this machine's GPU can do, what dlth does on it, and how far apart the two
are. `bench_device.py` beside this package runs it; with a CPU for a device it is the same at a size of seconds.

    scope        what is measured, at which size
    timing       candidates in turns until a deadline; a batch that fits into memory
    counts       operations and bytes of a call
    limits       what the device does at best: products, copies
    data         shards, tickets and weights that are made for the occasion, and runs on them
    selectors, steps, from_jpegs   what is measured
    authors      the paper's own code, from a user's copy of it
    machine      names and versions of what was measured on
    right        what the tests of tests/gpu found there
    page         tables as Markdown, and their place in docs/benchmarks.md
"""
