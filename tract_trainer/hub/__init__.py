"""Model cards, dataset cards and uploads.

Takes a judge's folder and facts about its training or evaluation; writes `README.md` and uploads it. `training` calls
it at every save, `cli` after an evaluation.
"""
