"""What becomes of a run whose launch has ended: started again, and how, or left.

decide.py   the table: by how it ended, what is done, as a pure function
ends.py     how it ended: the facts that the table asks for, from the journal, outcome.json and the disk

trainer/supervise.py does what the table says.
"""
