"""Formats of labelled examples: a description whose `open` reads all examples (`lm.data.types.Read`), one file each.

files       tables and JSON lines; read this one first
columns     CoNLL's columns, and entities of tagged words
questions   SQuAD's and CMRC's JSON
cloze       questions made of running text
tfds        TensorFlow Datasets
sources     sources by the arguments of configs
check       checks of texts, numbers and labels, with the example's FILE:LINE
answers     answer spans: from characters to tokens, and the best over several windows
"""
