"""The command line: one thin file per command, which parses, calls its twin in `smoe_cli.pipeline` and prints.

Nothing heavy is imported before a command runs, so that `--help` and completion stay quick.
"""
