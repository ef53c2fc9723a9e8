"""`python -m dlth.pipeline.cli`, as torchrun starts it."""

from dlth.pipeline.cli.error_handler import main

main()
