"""Published model folders of Hugging Face's layout, read and written.

In the order of reading: `rules` (the two-way table of tensors), `family` (the contract of a family) with `families/`, `layouts`
and `task_heads` (fine-tuned models), `convert` (`load` and `save`), `runs` (folders in place of runs). Files: `folder` over
`stored` (safetensors), `pickled` and `unpickle` (PyTorch); `lazy` (arrays onto devices), `absent` (missing heads), `tokens`
(the tokenizer's files), `differ` (refusals). Extras: `compare` (beside transformers), `vocabulary` with `spelling` (other
tokens). `python -m lm.convert` is the command.
"""
