"""Files become records, records become prompts, prompts become token ids.

Takes paths, rows and a tokenizer; gives prompts, training examples, token ids, and finished rows on disk. Every other
room reads and renders its data here.
"""
