"""A stage-1 judge writes the stage-2 dataset.

Takes a judge and a dataset of prompts with gold scores. Gives rows with the judge's own rationales, each closed with
the gold score. Users and `cli` call it.
"""
