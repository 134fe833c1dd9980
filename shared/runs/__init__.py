"""What the `reproduce` of every paper shares: configs, the order of runs, the facts kept of them, evidence,
scores, and the models as they are given away.

    config.py      the sections and the command line that all configs have
    facts.py       run.json, and whether a run is finished
    paper.py       what a paper says of itself: its experiments and how they are scored
    engine.py      experiments -> runs in waves, resumable
    evidence.py    predictions under results/ -> scorecard and REPRODUCTION.md
    checkpoint.py  where a checkpoint is, here or on the hub
    card.py        a run -> its model card
    publish.py     a run -> a folder for `from_pretrained`, and the hub

No model, no training, no deep-learning library: those belong to the papers.
"""
