"""Host half of the objectives: from a row of tokens to inputs and targets; pure numpy, no loop over tokens.

masking        which tokens a masked model predicts, and their replacements (BERT, ALBERT)
pairs          two sentences of a row and their label (BERT, ALBERT)
encoder_rows   [CLS] text [SEP], [CLS] A [SEP] B [SEP]
similar        replacement by similar words (MacBERT)
spans          span corruption and its kin (T5, UL2)
layouts        source and target on two sides, or in one line (T5, prefix-LM)
noise          text infilling, deletion, rotation, permutation of sentences (BART)
permutation    order and targets of permutation language modelling (XLNet)
sentences      sentences of a window (SimCSE)
"""
