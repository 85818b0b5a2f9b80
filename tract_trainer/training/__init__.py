"""Token ids become `score_labels`, a loss and a trained model.

Takes a model and a dataset as `SFTTrainer` does; gives a saved judge. Users and `cli` call it.
"""
