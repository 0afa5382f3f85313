"""Trains the tiny experiment in the folder given; run and killed by tests/test_resume.py."""

import sys

import tiny

EXPERIMENT = tiny.experiment(steps=120, eval_every=20, checkpoint_every=1)

if __name__ == "__main__":
    from segzoo.train import train

    train(EXPERIMENT, sys.argv[1], dataset=tiny.dataset())
