"""The rules of SeRL's published code, to the letter, apart from the defaults.

What a rule does is here; where it is switched on is beside the default it replaces:

===============================  ====================================================================================
``writing``                      ``data.writing.style: serl`` (few-shot prompt and parser), ``prompts.split_items``
``filters``                      ``QualityFilter``, ``NoveltyFilter`` and ``DifficultyFilter`` with ``style: serl``
``vote``                         ``data.reward: PairwiseVote``
``scoring``                      ``data.evaluation.scoring: serl``, ``data.reward: RuleReward``
``objective``                    ``model.objective.style: serl``
``schedule``                     ``model.lr_scheduler: lightning_serl.published.schedule.CosineWithFloor``
===============================  ====================================================================================

The order of things in a round (``data.round.style: serl``) is in ``datamodules.round``, and
``preset:as-published`` switches all of it on.
"""
