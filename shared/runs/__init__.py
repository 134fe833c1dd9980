"""What the entry points of every paper share: configs, training, evaluation, the order of runs, evidence and scores.

    config.py      the sections and the command line that all configs have
    plan.py        the command line, tables and memory of all plans
    training.py    what surrounds a Trainer: its arguments, and what a run leaves behind
    processes.py   the processes of one run: who each is, its GPU, what they exchange
    evaluation.py  what surrounds a model that is evaluated: whose weights, work in parts
    tasks.py       runs that are scored on downstream tasks    reports.py  on the reports that they write
    predict.py     the options of all predict
    facts.py       run.json, and whether a run is finished
    paper.py       what a paper says of itself: its experiments and how they are scored
    engine.py      experiments -> runs, each after those it needs, resumable
    evidence.py    predictions under results/ -> scorecard and REPRODUCTION.md
    tables.py      tables of levels, of runs, and their loss curves
    checkpoint.py  where a checkpoint is, here or on the hub
    card.py        a run -> its model card
    publish.py     a run -> a folder for `from_pretrained`, and the hub

No model and no training loop: those belong to the papers.
"""
