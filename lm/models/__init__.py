"""Networks as pure functions over parameters; nothing here knows data, objectives or meshes.

In the order of reading: `layers` (legend of axis letters, `Linear`, `Embed`, dropout), `norms`, `mlp`, `positions` (the tables
that a config chooses from), `attention`, `transformer` (the config), `stack` (the block and its repetition), `model` and
`encoder_decoder` (whole networks), `heads` (vocabulary and cross-entropy), `presets` (published sizes).
Variations: `lora`, `merge`, `quantized`, `recomputation`, `pipeline`, `adapters`, `electra`, `pooling`,
`crf`. Other networks: `relative`, `adaptive`, `memory` (Transformer-XL), `two_stream` (XLNet), `lstm`.
`shape` and `flops` serve all.
"""
