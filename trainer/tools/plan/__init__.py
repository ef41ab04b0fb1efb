"""`trainer plan`: what a run would take, before anything is started.

known.py says what is known of the run (its data, the shapes of its model), memory.py, pace.py and storage.py what it comes to, remedy.py
what would make it fit, and show.py tells it. None of it imports torch, but for the model that known.py builds where its shapes are not known.
"""
