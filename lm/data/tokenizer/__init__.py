"""Text to token ids and back, saved as tokenizer.json.

tokenizer       vocabularies as config values, and `Tokenizer`; read this one first
builders        the Hugging Face `tokenizers` objects behind it, trained or read from published files
sentencepiece   SentencePiece model files
special         names of special tokens across published vocabularies
vocabulary      tables by id: special, ends a sentence, starts a word
"""
