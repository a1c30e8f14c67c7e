"""Chaos: the real processes, killed, stopped and restarted while rows stream; afterwards every row is accounted for.

python -m tests.chaos          the long form: ROWS=1000000 FAULTS=200 SEED=random COLLECTORS=2
pytest tests/chaos             the short forms that run with every change

feeder    a streamer of its own: batches of known content, a journal of what it sent and what was acknowledged
pipeline  the processes: start, kill, stop, continue, restart on the same data and ports
faults    what is done to whom, drawn from a seed
audit     what must be true afterwards, from the journal, the broker's log, the store and the dead letters
scenario  the plot: start all, stream, strike, wait for calm, audit
"""
