"""What happened to a run and how it stands, from its files alone: what `trainer status` and `trainer report` show besides the losses.

words.py    an event of the journal, in words
ledger.py   launches and their ends, what each end cost, where the time went; pure, from the journal's events
account.py  a run's ledger from its folder, as text and for programs
page.py     the same as one HTML page (plots.py)
standing.py how a run stands now, from the ends of its files, which a month does not make longer to read
screen.py   that on a terminal: one run on a screen, all runs in a table
"""
