"""Formats of running text: a description (a config value) and its reader (`lm.data.types.Reader`) in one file each.

files      text files and JSON lines; read this one first
tables     comma- and tab-separated files
parquet    Parquet files
tfds       TensorFlow Datasets, without TensorFlow
tagged     words with tags (People's Daily)
restored   pairs made of any text: sentences without capitals and punctuation, and the sentences
words      marks of words, sentences, phrases and entities, for whole-word masks
"""
