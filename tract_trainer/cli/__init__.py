"""A command line becomes a call of one of the other rooms.

Takes arguments and YAML files; gives files, tables and an exit code. `tract` and `python -m tract_trainer` call it.
"""
