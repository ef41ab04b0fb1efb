"""`trainer generate`: prompts in, texts out as they are written.

prompts.py   where prompts come from: words, a file, standard input
texts.py     texts that a model continues, printed as lines or as JSON
stream.py    pieces of text from tokens, in the order of the prompts
"""
