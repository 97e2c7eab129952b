"""Objectives: corruption of text on the host and a loss on the device, one short file each.

Read in this order:
- `base`: the contract `Objective` and the keys of a batch.
- `causal`: next-token prediction, the plainest objective; `recurrent` adds a memory, `baselines` an LSTM.
- `masked`: BERT and its successors; `permuted` (XLNet), `replaced` (ELECTRA) and `contrastive` (SimCSE) vary it.
- `rows`: the layout and loss of a source and a target, and the mixin `SourceTarget` of `seq2seq`, `denoise` (BART),
  `span` (T5) and `prefix` (prefix-LM, UL2); `conditional` (Mask-Predict) predicts all target tokens at once.
- `finetune/`: the shared network and base of the labelled objectives `classify`, `choice`, `rank`, `tag`, `extract` and
  `text2text`.
- `mixture`: several objectives on one trunk; `multitask`: several fine-tuning tasks; `regularised`: additional terms around
  another objective.

`python -m lm.objectives` lists them. To add one, write a file here with a frozen dataclass that inherits `Objective`, with
`records`, `corrupt`, `init`, `loss` and `show`, and the class variables for its use after training (`writes`, `fills`,
`answers`, ...); and a file in `configs/` that returns a `Config` with it. Nothing is registered: the config names the class.
"""
