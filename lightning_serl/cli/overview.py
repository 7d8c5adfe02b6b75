"""What ``lightning-serl`` and ``lightning-serl --help`` print: every command with what it does, on one screen."""

from __future__ import annotations

OVERVIEW = """usage: lightning-serl COMMAND [OPTIONS]

Self-play reinforcement learning of language models without labels.

before a run
  plan       says what a run takes: memory, seconds of a round, days
  probe      answers some of the problems and says whether a run has something to learn from them
training
  fit        trains by self-play, measures before and after, and exports the model
  compare    trains and measures several methods beside controls, and writes one table
using a model
  validate   measures a model on labelled problems
  test       does the same, under metric names that begin with test/
  predict    writes problems with their voted answers to a file
after a run
  report     writes a page on one run or several: results, curves, transcripts
  merge      merges an adapter that was exported alone into its base
  push       publishes model and problems of a run on the hub

`lightning-serl COMMAND --help` shows the options of a command; plan, probe and compare take those of fit too.
Options may stand in files: -c mine.yaml, or -c preset:NAME for one that is installed.
To try it, a minute on a CPU: lightning-serl fit -c preset:quickstart
"""
