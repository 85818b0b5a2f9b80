"""Facts about a judge become a model card and a repository.

Takes a judge's folder and what training or an evaluation knows of it; gives `README.md` and uploads. `training` calls
it
at every save, `cli` after an evaluation.
"""
