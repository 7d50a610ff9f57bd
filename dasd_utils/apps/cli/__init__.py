"""The command `dasd`. In reading order:

- main: what it does with errors
- options: what the commands share
- runs: the commands that make a run and use it
- study: those that study methods, and that look after the course and its models
"""
