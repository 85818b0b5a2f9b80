"""The `tract` command. Each command reads its settings, calls other rooms, and prints a table or writes files.

`parsing` and `arguments` read the settings. `commands` has a function for each command; `pipeline` and `run` do the
work that needs more than one call.
"""
