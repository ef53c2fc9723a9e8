"""How the `dlth` command ends; 75, stopped on request and resumable, is `dlth.training`'s."""

EXIT_DAMAGE, EXIT_INPUT, EXIT_BUG, EXIT_INTERRUPTED, EXIT_READER_GONE = 1, 2, 70, 130, 141
"""70 is EX_SOFTWARE of sysexits.h; 130 and 141 are what a shell says of a program ended by SIGINT and by SIGPIPE."""
