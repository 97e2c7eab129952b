"""A corpus, prepared once and opened from the cache afterwards.

corpus      `Data`, the config, and `Corpus`, the result
prepare     the cache: keys, checks
shards      a corpus in shards, by any number of processes: plan, index; locks
tokenise    readers to the token files of a shard, resumed after a kill
store       a token file on disk, by memory map; joined: those of several shards
digests     checksums
split       training and validation, by hashes of the content; folds
gather      labelled examples: both sides of the split, and a tokenizer
augment     changed copies of training examples; rewording: their edits of words
"""
