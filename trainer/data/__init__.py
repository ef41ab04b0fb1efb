"""From text to micro-batches.

    sources.py     documents from files, folders, the Hugging Face hub, the embedded corpus
    hub_datasets.py   names of datasets of the hub, and the commit that one means
    cached_rows.py   rows of the hub that were fetched before, from the disk
    prepare.py     documents -> shards of tokens and manifest.py's signature, by encode.py and split_writer.py
    embedded_corpus.py   the corpora that come with the trainer, prepared when they are first used
    tokenizer.py   text <-> tokens; bpe.py reads and writes vocabularies, baselines.py counts what a model must beat
    shards.py      shards of every common layout (layouts.py) -> sequences
    corpus.py      what a recipe's data section names, opened
    order.py       which sequence stands at each position of the run: a pure function
    loader.py      position -> this rank's micro-batches of a global batch
    assets.py      the corpus and the vocabularies that come with the package, in embedded/

Nothing is imported here, so that tokenizing needs no torch and reading shards needs no datasets.
"""
