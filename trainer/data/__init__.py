"""From text to micro-batches.

    sources.py     documents from files, folders, the Hugging Face hub, the embedded corpus
    hub_datasets.py   names of datasets of the hub, and the commit that one means
    cached_rows.py   rows of the hub that were fetched before, from the disk
    prepare.py     documents -> shards of tokens and manifest.py's signature, by encode.py and split_writer.py
    embedded_corpus.py   the corpora that come with the trainer, prepared when they are first used
    tokens.py      text <-> tokens: what every tokenizer can; tokenizer.py finds one by name; bpe.py reads and writes vocabularies, baselines.py counts what a model must beat
    byte_pairs.py  byte-level BPE by tiktoken, each distinct word of a batch once
    hugging_face.py   tokenizers as AutoTokenizer opens them; bridge.py leads from them to tiktoken, bridge_proof.py and probe.py say
                   whether it holds; sentence_piece.py opens what is for sentencepiece alone
    train_tokenizer.py   a tokenizer of one's own from text, of which text_sample.py takes as much as fits; describe_tokenizer.py compares some
    shards.py      shards of every common layout (layouts.py) -> sequences
    corpus.py      what a recipe's data section names, opened
    order.py       which sequence stands at each position of the run: a pure function
    loader.py      position -> this rank's micro-batches of a global batch
    assets.py      the corpus and the vocabularies that come with the package, in embedded/

Nothing is imported here, so that tokenizing needs no torch and reading shards needs no datasets.
"""
