"""What the `reproduce` of every paper shares: configs, the order of runs, the facts kept of them, evidence and scores.

    config.py    the sections and the command line that all configs have
    facts.py     run.json, and whether a run is finished
    paper.py     what a paper says of itself: its experiments and how they are scored
    engine.py    experiments -> runs in waves, resumable
    training.py  what surrounds a Trainer: its arguments, and what a run leaves behind
    evidence.py  predictions under results/ -> scorecard and REPRODUCTION.md

No model and no training loop: those belong to the papers.
"""
