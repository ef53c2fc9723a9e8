"""The two stages, the demo, reports and the command line: thin, and on top of everything."""
