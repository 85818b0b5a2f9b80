"""Files to records, records to prompts, prompts to token ids.

Takes paths, rows and a tokenizer; gives prompts, training examples, token ids, and finished rows on disk. Every other
room reads and renders its data here.
"""
