"""`python -m dlth.pipeline.cli`, as torchrun starts it."""

from dlth.pipeline.cli.last_line import main

main()
