"""The command line: one file a group of commands; each parses, calls one library function and shows what came back.

May import: selection, project, pages, evidence, judging, reports, studies, pruning, reproduction.
"""
