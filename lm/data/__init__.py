"""From files to batches; numpy only, never jax. A batch is a pure function of (seed, step).

Read in this order:

    types        pieces of running text, labelled examples, their sources and readers
    files        files as records: lines, JSON lines and rows of tables, with FILE:LINE; packed: .gz and .zst
    text/        formats of running text, read by index
    tokenizer/   text to ids and back
    corpus/      tokenise once into a cache; split; augment
    rows/        cut, pack and shuffle tokens and examples into batches
    labelled/    formats of labelled examples, for fine-tuning
    sources      sources by the arguments of configs; mixtures
    demo         the interpreter's documentation, as text and as labelled examples
"""
