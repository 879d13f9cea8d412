"""The simulator: how sure it is that an array keeps its data. model: what is simulated. verdicts: which losses a set of disks bears, as the
engine says. montecarlo: missions drawn at random, in C, with losses too rare to be waited for.
"""
