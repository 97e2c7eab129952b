"""A corpus, prepared once and opened from the cache afterwards.

corpus      `Data`, the config, and `Corpus`, the result
prepare     the cache: keys, locks, checks
tokenise    readers to token files, resumed after a kill
store       a token file on disk, by memory map
digests     checksums
split       training and validation, by hashes of the content; folds
gather      labelled examples: both sides of the split, and a tokenizer
augment     changed copies of training examples; rewording: their edits of words
"""
